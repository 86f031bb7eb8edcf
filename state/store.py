"""What every state store promises. `tests/store_contract.py` holds the stores to these words.

A store keeps, for each Kafka partition, rows by user key and one changelog position. It knows no
format of rows: it returns the bytes that it was given.

- What `write` was given is there together or not at all, also after `kill -9` at any moment:
  a position of N means all rows up to N are there and none beyond. Writes with `logged=False`
  may be forgotten by a crash, newest first, until a logged one or `close` has followed them.
- A partition is open or closed. Only `open`, `close`, `close_all` and `destroy` may be called for
  a closed one; everything else raises StateError. Closed rows stay until they are destroyed.
- One thread at a time uses a store, but for `get`, which a second one may call meanwhile on a
  partition that stays open: it finds the rows of a batch that is being written, or those before.
"""

from collections.abc import Iterable, Iterator, Sequence
from dataclasses import dataclass
from typing import Protocol

from state.errors import StateError


@dataclass(kw_only=True)
class StoreStats:
    """What a store has done since it was made; only ever grows."""

    rows_read: int = 0
    """Keys asked for by `get`."""
    rows_missed: int = 0
    """Of these, keys without a row."""
    rows_written: int = 0
    rows_deleted: int = 0
    bytes_written: int = 0
    """Length of the keys and rows written."""
    batches_written: int = 0

    def count_read(self, rows: Sequence[bytes | None]) -> None:
        """Count what one `get` returns."""
        self.rows_read += len(rows)
        self.rows_missed += rows.count(None)

    def count_written(self, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Count one batch that was written."""
        deleted = sum(row is None for _, row in rows)
        self.rows_written += len(rows) - deleted
        self.rows_deleted += deleted
        self.bytes_written += sum(len(key) + len(row or b"") for key, row in rows)
        self.batches_written += 1


class StateStore(Protocol):
    """Rows of state by partition and user key. Keys are any bytes."""

    stats: StoreStats

    def open(self, partition: int) -> None:
        """Make a partition usable, empty if it never was; nothing happens if it is open."""

    def close(self, partition: int) -> None:
        """Release a partition's files and keep its rows; nothing happens if it is closed."""

    def close_all(self) -> None:
        """Close every partition and release all that the store holds; `open` takes it again."""

    def destroy(self, partition: int) -> None:
        """Close a partition, open or not, and remove all of it, the position too."""

    def partitions(self) -> set[int]:
        """Return the partitions that are open."""

    def get(self, partition: int, keys: list[bytes]) -> list[bytes | None]:
        """Return the row of each key, in their order, None where there is none."""

    def write(
        self,
        partition: int,
        rows: Iterable[tuple[bytes, bytes | None]],
        position: int | None,
        *,
        logged: bool = True,
    ) -> None:
        """Write rows and the position together; of several rows for one key the last counts.

        Args:
            partition: An open partition.
            rows: Key and row; None deletes.
            position: The changelog position that these rows bring the partition to, any signed
                64-bit number; None leaves it as it is.
            logged: False where a crash may forget the write, since its rows can be had again: much
                cheaper in bulk.
        """

    def position(self, partition: int) -> int | None:
        """Return the position last written, None if there is none."""

    def mark(self, partition: int) -> bytes | None:
        """Return the caller's own note about the partition, None if there is none."""

    def set_mark(self, partition: int, mark: bytes | None) -> None:
        """Keep a note about the partition, as durably as a logged write; None removes it."""

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key and row in the order of their keys, and never the position.

        A row that is written or deleted meanwhile may or may not be seen. A partition that is
        closed meanwhile ends the scan with StateError.
        """


def not_open(partition: int, store: str, partitions: Iterable[int]) -> StateError:
    """Return the error for the use of a partition that is not open."""
    return StateError(
        f"partition {partition} of {store}: expected it to be open, got {sorted(partitions)} open"
    )
