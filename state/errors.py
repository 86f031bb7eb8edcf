"""Errors of this package.

StateError
├── StateCorrupt        a store's files do not read back as they were written
├── StateFormatUnknown  bytes of a format version that this program does not know
└── StoreLocked         another process holds the store's folder
"""


class StateError(Exception):
    """A state cannot be read or written; the message says which, where and what was expected."""


class StateCorrupt(StateError):
    """A store's files are damaged.

    Remove the folder that the message names: a partition that is missing on disk is restored
    whole from its changelog.
    """


class StateFormatUnknown(StateError):
    """Bytes carry a format version that this program does not know, most often a newer one.

    Run the release of the program that wrote them, or a later one.
    """


class StoreLocked(StateError):
    """Another process holds the store's folder; stop it, or give each process its own folder."""
