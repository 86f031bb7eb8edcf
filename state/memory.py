"""The state store that keeps rows in memory: for tests and development. Keeps the same contract."""

from collections.abc import Iterable, Iterator

from state.store import StoreStats, not_open


class MemoryStore:
    """Rows in dictionaries; they outlive `close`, not the process."""

    def __init__(self) -> None:
        self.stats = StoreStats()
        self._rows: dict[int, dict[bytes, bytes]] = {}
        self._positions: dict[int, int] = {}
        self._marks: dict[int, bytes] = {}
        self._open: set[int] = set()

    def open(self, partition: int) -> None:
        """Make a partition usable, empty if it never was."""
        self._rows.setdefault(partition, {})
        self._open.add(partition)

    def close(self, partition: int) -> None:
        """Make a partition unusable and keep its rows."""
        self._open.discard(partition)

    def close_all(self) -> None:
        """Close every partition."""
        self._open.clear()

    def destroy(self, partition: int) -> None:
        """Close a partition and forget its rows and its position."""
        self._open.discard(partition)
        self._rows.pop(partition, None)
        self._positions.pop(partition, None)
        self._marks.pop(partition, None)

    def partitions(self) -> set[int]:
        """Return the partitions that are open."""
        return set(self._open)

    def get(self, partition: int, keys: list[bytes]) -> list[bytes | None]:
        """Return the row of each key, None where there is none."""
        rows = self._opened(partition)
        found = [rows.get(key) for key in keys]
        self.stats.count_read(found)
        return found

    def write(
        self,
        partition: int,
        rows: Iterable[tuple[bytes, bytes | None]],
        position: int | None,
        *,
        logged: bool = True,
    ) -> None:
        """Write rows and the position together."""
        kept = self._opened(partition)
        batch = list(rows)  # before the first change: the iterable may fail midway
        for key, row in batch:
            if row is None:
                kept.pop(key, None)
            else:
                kept[key] = row
        if position is not None:
            self._positions[partition] = position
        self.stats.count_written(batch)

    def position(self, partition: int) -> int | None:
        """Return the position last written, None if there is none."""
        self._opened(partition)
        return self._positions.get(partition)

    def mark(self, partition: int) -> bytes | None:
        """Return the caller's own note about the partition."""
        self._opened(partition)
        return self._marks.get(partition)

    def set_mark(self, partition: int, mark: bytes | None) -> None:
        """Keep a note about the partition; None removes it."""
        self._opened(partition)
        if mark is None:
            self._marks.pop(partition, None)
        else:
            self._marks[partition] = mark

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key and row in the order of their keys."""
        for key in sorted(self._opened(partition)):
            row = self._opened(partition).get(key)
            if row is not None:
                yield key, row

    def _opened(self, partition: int) -> dict[bytes, bytes]:
        if partition not in self._open:
            raise not_open(partition, "the store in memory", self._open)
        return self._rows[partition]
