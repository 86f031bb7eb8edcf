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

    def _refuse(self, *args: Any, **kwargs: Any) -> NoReturn:
        msg = f"table {self.table_name!r} is written by checkpoints only"
        raise TypeError(msg)

    _set = _del = _clear = _refuse
    backup_partition = restore_backup = _refuse  # the changelog is the copy

    def reset_state(self) -> None:
        """Remove nothing: a local copy is only removed with a reason (see `Restore`)."""
