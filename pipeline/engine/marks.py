"""Which changelog holds the states up to which source offset: notes in the store and in commits.

Each commit of a source partition names the changelog that holds its states; another one, of the
same name, does not. Each store notes up to where its own rows reflect the source: where the
changelog does not hold the states any more, reading goes on from there.
"""

from dataclasses import dataclass

from pipeline.cluster.topics import NO_ID


@dataclass(frozen=True)
class Mark:
    """What a store notes about the rows of one partition.

    Attributes:
        log: Names the changelog that they were read from or written to, and where it begins; None
            while they do not meet one.
        reflects: Every source offset below this one is reflected by them; None: nobody knows.
    """

    log: bytes | None
    reflects: int | None

    def encode(self) -> bytes | None:
        """Return its bytes; None where it says nothing."""
        if self.reflects is None:
            return self.log
        return b"%b reflects %d" % (self.log or b"", self.reflects)

    @classmethod
    def decode(cls, found: bytes | None) -> "Mark":
        """Read what `encode` wrote, or a version that knew no `reflects`."""
        if found is None:
            return cls(None, None)
        log, told, reflects = found.rpartition(b" reflects ")
        return cls(log or None, int(reflects)) if told else cls(found, None)


def names(note: bytes, mark: bytes) -> bool:
    """Tell whether what a commit says may be of this changelog.

    It may where it says nothing, as that of a tool or an earlier version, or was made when the
    cluster had no ids of topics yet.

    Args:
        note: The commit's metadata.
        mark: See `Mark.log`.
    """
    return note in (b"", mark) or note.startswith(NO_ID.encode())


def where_to_go_on(committed: int, reflects: int | None, beginning: int) -> int | None:
    """Return the source offset from which to read where the changelog does not hold the states.

    Args:
        committed: The group's offset.
        reflects: Of the local rows, see `Mark`.
        beginning: The first offset that the source has.

    Returns:
        At most `committed`; None where what has to be read again is not there any more.
    """
    reflected = reflects or 0  # of rows that only others moved, as a standby has, or of none
    if reflected >= committed:
        return committed
    return reflected if reflected >= beginning else None
