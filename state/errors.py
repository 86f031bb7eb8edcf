"""Errors of this package.

StateError
├── StateCorrupt        a store's files do not read back as they were written
├── StateFormatUnknown  bytes of a format version that this program does not know
└── StoreLocked         another process holds the store's folder
"""

from collections.abc import Sequence


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

    Attributes:
        row: Which row of a batch it is, from 0; None where it is none.
    """

    def __init__(self, message: str, row: int | None = None) -> None:
        super().__init__(message)
        self.row = row

    def at(self, partition: int, keys: Sequence[bytes]) -> "StateFormatUnknown":
        """Return it with the row's place, and what to do where no release wrote the row.

        Args:
            partition: Of the batch's users.
            keys: Theirs, in the order of the batch.
        """
        if self.row is None:
            return self
        return StateFormatUnknown(
            f"partition {partition}, key {keys[self.row]!a}: {self}. Where none wrote it: "
            f"send a null value with this key to this partition of the changelog, remove the "
            f"folder partition-{partition} of the worker's states, and the user begins anew"
        )


class StoreLocked(StateError):
    """Another process holds the store's folder; stop it, or give each process its own folder."""
