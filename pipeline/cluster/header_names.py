r"""Records that aiokafka does not bring as others: header names that are no text, no timestamp.

The name of a header is UTF-8 by the protocol, but no broker checks it, and aiokafka reads no batch
that breaks the rule: one such record would stop its partition for ever. So the rest of such a batch
is read in Python, and `\xff` stands in a name for what is no UTF-8. Records in message format 0,
which a log may hold since before Kafka 0.10, have no timestamp: None by aiokafka, here -1, as Kafka
has it. A batch that would not fit into memory is refused before it is unpacked. Private names of
aiokafka are used.
"""

import struct
from collections.abc import Iterator
from dataclasses import replace
from typing import Any

from aiokafka.consumer import fetcher
from aiokafka.record.default_records import _DefaultRecordBatchPy
from aiokafka.record.legacy_records import LegacyRecordBatch, _LegacyRecordPy
from aiokafka.record.memory_records import MemoryRecords

from pipeline.cluster.unpacked_size import require_sensible

_BATCH_START = struct.Struct(">qi")  # first offset, bytes behind this
_NO_TIMESTAMP = -1


def tolerate_bad_names() -> None:
    """Make this process's aiokafka consumers read such records, and give each a timestamp."""
    fetcher.MemoryRecords = _TolerantRecords


class _TolerantRecords(MemoryRecords):  # type: ignore[misc]  # untyped
    """What one fetch brought for one partition."""

    def __init__(self, data: bytes) -> None:
        super().__init__(data)
        self._left = memoryview(data)

    def next_batch(self) -> Any:
        batch = super().next_batch()
        if batch is None:
            return None
        _, size = _BATCH_START.unpack_from(self._left)
        end = _BATCH_START.size + size
        data, self._left = self._left[:end], self._left[end:]
        return _TolerantBatch(batch, data)


class _TolerantBatch:
    """A batch of aiokafka's, and the way out where that gives up."""

    def __init__(self, batch: Any, data: memoryview) -> None:
        self._batch = batch
        self._data = data

    def __getattr__(self, name: str) -> Any:
        return getattr(self._batch, name)

    def __iter__(self) -> Iterator[Any]:
        if isinstance(self._batch, LegacyRecordBatch):  # of before there were headers
            yield from map(_timed, self._batch)
            return
        require_sensible(self._data)
        n = 0
        try:
            for record in self._batch:
                n += 1
                yield record
        except UnicodeDecodeError:
            yield from list(_LenientBatch(bytes(self._data)))[n:]

    def __next__(self) -> Any:
        return next(self._batch)


def _timed(record: Any) -> Any:
    if record.timestamp is not None:
        return record
    return _LegacyRecordPy(
        record.offset, _NO_TIMESTAMP, None, record.key, record.value, record.checksum
    )


class _LenientBatch(_DefaultRecordBatchPy):  # type: ignore[misc]  # untyped
    """aiokafka's reader in Python, which takes header names as they come.

    Numbers wrap around as in the reader in C: a record may add up to more than 64 bits hold.
    """

    _buffer: bytearray

    def _read_msg(self, *args: Any) -> Any:
        record = super()._read_msg(*args)
        return replace(record, offset=_int64(record.offset), timestamp=_int64(record.timestamp))

    def _maybe_uncompress(self) -> None:
        super()._maybe_uncompress()
        self._buffer = _LenientBytes(self._buffer)


def _int64(number: int) -> int:
    return (number + (1 << 63)) % (1 << 64) - (1 << 63)


class _LenientBytes(bytearray):
    """Bytes whose parts can all be decoded."""

    def __getitem__(self, index: Any) -> Any:
        found: Any = super().__getitem__(index)
        return _LenientBytes(found) if isinstance(index, slice) else found

    def decode(self, encoding: str = "utf-8", errors: str = "strict") -> str:
        """Decode, with escapes for what is no text, whatever `errors` says."""
        return super().decode(encoding, "backslashreplace")
