"""A batch with a header name that is no text reads like one without; no time is a negative one."""

import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

from aiokafka import codec
from aiokafka.record.legacy_records import LegacyRecordBatchBuilder
from aiokafka.record.memory_records import MemoryRecords
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.cluster.header_names import _TolerantRecords

LEAST, MOST = -(2**63), 2**63 - 1
CODECS = [bytes, codec.gzip_encode, codec.snappy_encode, codec.lz4_encode, codec.zstd_encode]
INT64 = st.integers(LEAST, MOST) | st.sampled_from([LEAST, -1, 0, 1, MOST])
BYTES = st.none() | st.binary(max_size=20)


@dataclass(frozen=True)
class Written:
    """A record as it stands in a batch; its numbers are added to those of the batch."""

    later_ms: int = 0
    behind: int = 0
    key: bytes | None = b"k"
    value: bytes | None = b"v"
    headers: Sequence[tuple[bytes, bytes | None]] = ()


NAMES = st.text(st.characters(codec="utf-8"), max_size=5).map(str.encode)
RECORDS = st.builds(
    Written,
    later_ms=INT64,
    behind=INT64,
    key=BYTES,
    value=BYTES,
    headers=st.lists(st.tuples(NAMES, BYTES), max_size=3),
)


def varint(number: int) -> bytes:
    """Zigzag, seven bits a byte, as the protocol has it."""
    left = (number << 1 ^ number >> 63) & (2**64 - 1)
    out = bytearray()
    while left > 0x7F:
        out.append(left & 0x7F | 0x80)
        left >>= 7
    return bytes([*out, left])


def sized(content: bytes | None) -> bytes:
    return varint(-1) if content is None else varint(len(content)) + content


def encode(record: Written) -> bytes:
    body = b"\0" + varint(record.later_ms) + varint(record.behind)
    body += sized(record.key) + sized(record.value) + varint(len(record.headers))
    body += b"".join(sized(name) + sized(content) for name, content in record.headers)
    return sized(body)


def batch(records: Sequence[Written], base: int, times: tuple[int, int], attributes: int) -> bytes:
    content = CODECS[attributes & 7](b"".join(map(encode, records)))
    head = struct.pack(">hiqqqhii", attributes, len(records) - 1, *times, -1, -1, -1, len(records))
    rest = struct.pack(">ibI", -1, 2, 0) + head + content
    return struct.pack(">qi", base, len(rest)) + rest


def read(records: MemoryRecords) -> list[tuple[Any, ...]]:
    return [
        (r.offset, r.timestamp, r.timestamp_type, r.key, r.value, [*r.headers])
        for r in records.next_batch()
    ]


@given(
    records=st.lists(RECORDS, max_size=4),
    base=INT64,
    times=st.tuples(INT64, INT64),
    attributes=st.integers(0, 15).filter(lambda bits: bits & 7 < len(CODECS)),
)
@example(records=[Written(later_ms=MOST, behind=MOST)], base=MOST, times=(MOST, MOST), attributes=0)
def test_a_bad_name_changes_nothing_else(
    records: list[Written], base: int, times: tuple[int, int], attributes: int
) -> None:
    """The reader in Python brings what aiokafka's in C brings, beyond 64 bits too."""
    bad, text = (Written(headers=[(name, b"of the first")]) for name in (b"\xff", rb"\xff"))

    found = read(_TolerantRecords(batch([bad, *records], base, times, attributes)))

    assert found == read(MemoryRecords(batch([text, *records], base, times, attributes)))
    assert all(LEAST <= number <= MOST for record in found for number in record[:2])


@given(batches=st.lists(st.lists(RECORDS, max_size=2), min_size=1, max_size=4))
def test_a_bad_name_brings_the_records_of_its_own_batch(batches: list[list[Written]]) -> None:
    """One fetch holds many batches, and any of them may have such a name."""
    bad, text = (Written(headers=[(name, b"of the first")]) for name in (b"\xff", rb"\xff"))

    def fetched(first: Written) -> bytes:
        return b"".join(
            batch([first, *records], 10 * number, (0, 0), 0)
            for number, records in enumerate(batches)
        )

    tolerant, plain = _TolerantRecords(fetched(bad)), MemoryRecords(fetched(text))

    for _ in batches:
        assert read(tolerant) == read(plain)
    assert not tolerant.has_next()


@given(
    records=st.lists(st.tuples(BYTES, BYTES), min_size=1, max_size=4),
    magic=st.integers(0, 1),
    codec_number=st.integers(0, 2),
    time_ms=st.integers(0, MOST),
)
def test_a_record_of_an_old_format_has_a_negative_time_where_it_has_none(
    records: list[tuple[bytes | None, bytes | None]], magic: int, codec_number: int, time_ms: int
) -> None:
    """Message format 0 knows no times; format 1 does, and they stay."""
    written = LegacyRecordBatchBuilder(magic=magic, compression_type=codec_number, batch_size=9999)
    for offset, (key, value) in enumerate(records):
        written.append(offset, timestamp=time_ms if magic else None, key=key, value=value)

    batches, found = _TolerantRecords(bytes(written.build())), []
    while batches.has_next():
        found += read(batches)

    time_and_type = (time_ms, 0) if magic else (-1, None)
    assert found == [
        (offset, *time_and_type, key, value, []) for offset, (key, value) in enumerate(records)
    ]
