"""What the engine asks of whoever turns records into rows and recommendations."""

from collections.abc import Collection, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from hashlib import sha256
from typing import Protocol

import numpy as np
import numpy.typing as npt

from pipeline.engine.chunks import MAX_HEADER_BYTES, Chunk


def record_bytes(
    key: bytes | None, value: bytes | None, headers: Iterable[tuple[str, bytes | None]]
) -> int:
    """Return how many bytes a record may take in a batch, beside some 100 that every one takes."""
    in_headers = sum(
        MAX_HEADER_BYTES + len(name.encode()) + len(content or b"") for name, content in headers
    )
    return len(key or b"") + len(value or b"") + in_headers


@dataclass(slots=True)
class DeadLetter:
    """A record that cannot be used, with its own bytes.

    Attributes:
        key: The record's key, unchanged.
        value: The record's value, unchanged; None stays None.
        headers: The record's own headers, unchanged.
        about: Reason, topic, partition, offset, timestamp and error, which are further headers.
    """

    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes | None]]
    about: list[tuple[str, bytes | None]] = field(default_factory=list)

    def size(self) -> int:
        """Return the bytes of the record, at most."""
        return record_bytes(self.key, self.value, self.headers)

    def without_record(self) -> "DeadLetter":
        """Return a letter that only tells of the record: its sizes (-1: none) and a digest."""
        headers = sum(len(name.encode()) + len(value or b"") for name, value in self.headers)
        sizes = {
            "key": -1 if self.key is None else len(self.key),
            "value": -1 if self.value is None else len(self.value),
            "headers": headers,
        }
        told = [(f"lrurec-{part}-bytes", b"%d" % size) for part, size in sizes.items()]
        digest = sha256(self.value or b"").hexdigest().encode()
        return DeadLetter(None, None, (), [*self.about, *told, ("lrurec-value-sha256", digest)])


@dataclass(slots=True)
class PartitionResult:
    """What one micro-batch means for one partition.

    Attributes:
        partition: Its number.
        outputs: (key, value) records for the output topic, same partition number, in order; a null
            value takes back what was put out under the key.
        dead_letters: Records that cannot be used.
        moved_rows: Rows of this partition that no snapshot has taken yet.
        newest_offset: The highest source offset that a row of these outputs reflects; -1: none.
        record_ms: Timestamps of the records that the outputs answer, for the latency.
    """

    partition: int
    outputs: list[tuple[bytes, bytes | None]]
    dead_letters: list[DeadLetter] = field(default_factory=list)
    moved_rows: int = 0
    newest_offset: int = -1
    record_ms: Sequence[int] | npt.NDArray[np.int64] = ()


@dataclass(slots=True)
class Snapshot:
    """The rows of one partition that moved since the snapshot before.

    Attributes:
        rows: (key, row) pairs, each key once; a row of None deletes, and takes back what the output
            topic says under that key: a null value leaves with it, in one transaction.
        token: Whatever `Processor.settled` needs to know the snapshot again.
    """

    rows: list[tuple[bytes, bytes | None]]
    token: object = None


class Processor(Protocol):
    """Moves states and makes outputs. All but `sent` and `newer` run in one thread, one at a time.

    Rows live with the processor until `settled`: only then does the store have them.
    """

    def process(self, chunks: Sequence[tuple[int, Chunk]]) -> list[PartitionResult]:
        """Apply the records of (partition, chunk) pairs, in order, each at most once.

        Delivery is at least once: a record at or below the offset that a user's row reflects
        changes nothing, but its user still gets an output (the one before may never have left).
        Not so where outputs are part of the rows' transaction (`EngineOptions.transactional`): the
        row proves that the output before was committed, and each is committed once.

        Returns:
            One result for every partition that a chunk came from, also where it holds nothing.
        """
        ...

    def refresh(self, owned: Collection[int]) -> Mapping[int, int]:
        """Take up what changed elsewhere. Called every second, also where no records come.

        Args:
            owned: The partitions whose rows may be changed.

        Returns:
            For each partition whose rows moved by it, how many of them no snapshot has taken yet.
        """
        ...

    def snapshot(self, partition: int) -> Snapshot:
        """Return what moved in the partition since the last snapshot."""
        ...

    def settled(self, partition: int, snapshot: Snapshot) -> None:
        """Note that the changelog and the store hold the snapshot's rows."""
        ...

    def forget(self, partition: int) -> None:
        """Drop everything held of a partition: it may have other owners from here on."""
        ...

    def newer(self, rows: Sequence[bytes], than: Sequence[bytes]) -> list[bool]:
        """Tell which of these rows to keep rather than the other one of the same user.

        Those that are intact and reflect more of the source, or whose other one is damaged. May be
        called from any thread.
        """
        ...

    def sent(self, results: Sequence[PartitionResult], now_s: float) -> None:
        """Note that the outputs of these results left at `now_s` (seconds since 1970).

        Called in the event loop.
        """
        ...
