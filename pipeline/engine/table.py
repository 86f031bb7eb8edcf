"""The Faust table's view of the rows: it reads the state store and never writes it.

Rows are written by checkpoints alone. The table gives the changelog topic its name and makes the
changelog's partitions travel with the source's.
"""

from collections.abc import Iterator
from typing import Any, NoReturn

from faust.stores import STORES
from faust.stores.base import SerializedStore

from pipeline.engine.service_log import SERVICE_LOG

SCHEME = "lrurec-rows"


def register() -> None:
    """Make Faust find this store under `lrurec-rows://`."""
    STORES.aliases[SCHEME] = "pipeline.engine.table:Store"


class Store(SerializedStore):
    """Reads the rows of the partitions that are open here."""

    logger = SERVICE_LOG

    def _rows(self) -> Iterator[tuple[bytes, bytes]]:
        store = self.app.stream_service.store
        for partition in sorted(store.partitions()):
            yield from store.scan(partition)

    def _get(self, key: bytes) -> bytes | None:
        store = self.app.stream_service.store
        for partition in store.partitions():
            row: bytes | None = store.get(partition, [key])[0]
            if row is not None:
                return row
        return None

    def _contains(self, key: bytes) -> bool:
        return self._get(key) is not None

    def _iterkeys(self) -> Iterator[bytes]:
        return (key for key, _ in self._rows())

    def _itervalues(self) -> Iterator[bytes | None]:
        return (row for _, row in self._rows())

    def _iteritems(self) -> Iterator[tuple[bytes, bytes]]:
        return self._rows()

    def _size(self) -> int:
        return sum(1 for _ in self._rows())

    def _refuse(self) -> NoReturn:
        msg = f"table {self.table_name!r} is written by checkpoints only"
        raise TypeError(msg)

    def _set(self, key: bytes, value: bytes | None) -> None:
        self._refuse()

    def _del(self, key: bytes) -> None:
        self._refuse()

    def _clear(self) -> None:
        self._refuse()

    def persisted_offset(self, tp: Any) -> int | None:
        """Return the changelog offset that the local rows reflect."""
        position: int | None = self.app.stream_service.store.position(tp.partition)
        return position

    async def backup_partition(self, tp: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse: the changelog is the copy."""
        self._refuse()

    def restore_backup(self, tp: Any, *args: Any, **kwargs: Any) -> None:
        """Refuse: the changelog is the copy."""
        self._refuse()

    def reset_state(self) -> None:
        """Remove nothing: a local copy is only removed with a reason (see `Restore`)."""
