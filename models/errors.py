"""What can go wrong in `models`.

ModelError
├── ReleaseError
│   ├── ReleaseCorrupt
│   └── ReleaseIncompatible
└── CheckpointIncompatible
"""


class ModelError(Exception):
    """Base of every error that `models` raises by intent (besides ValueError for misuse)."""


class ReleaseError(ModelError):
    """A release folder cannot be written or used."""


class ReleaseCorrupt(ReleaseError):
    """Bytes of a release are missing or not the ones that were written.

    Operator action: copy the release folder again from where it was made, or train a new one. A
    worker that meets this keeps serving the release it has.
    """


class ReleaseIncompatible(ReleaseError):
    """A release is whole, but this version of the software cannot use it.

    Operator action: upgrade the software, or train a new release with this version.
    """


class CheckpointIncompatible(ModelError):
    """A checkpoint of the published implementation does not hold an LRURec model.

    Operator action: export it again; the message names the key, what it should hold and what it
    does.
    """
