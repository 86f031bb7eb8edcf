"""Chunks cover every offset of what was fetched, whatever a log holds there."""

import asyncio
import struct
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import pytest
from aiokafka import codec
from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult, PartitionRecords
from aiokafka.consumer.subscription_state import SubscriptionState
from aiokafka.errors import CorruptRecordException
from aiokafka.record.default_records import DefaultRecordBatchBuilder
from aiokafka.record.util import calc_crc32c
from aiokafka.structs import TopicPartition
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster import header_names
from pipeline.engine.chunks import Chunk, take_chunks

TP = TopicPartition("clicks", 3)
TRANSACTIONAL, CONTROL = 0x10, 0x20
ABORT_MARKER, COMMIT_MARKER = b"\0\0\0\0", b"\0\0\0\1"
BAD_NAME = b"\xff\xfe\xfd"
HEADER_BYTES = 61
CODECS = [bytes, codec.gzip_encode, codec.snappy_encode, codec.lz4_encode, codec.zstd_encode]


@dataclass(frozen=True)
class Batch:
    """A batch as compaction, transactions and careless clients leave it in a log."""

    kept: tuple[bool, ...]  # which of its offsets still hold a record
    gap: int = 0  # offsets before it that hold nothing at all
    producer: int = -1
    attributes: int = 0
    marker: bytes | None = None
    has_bad_name: bool = False
    codec: int = 0


PLAIN = st.builds(
    Batch,
    kept=st.lists(st.booleans(), min_size=1, max_size=6).map(tuple),
    gap=st.integers(0, 2),
    has_bad_name=st.booleans(),
    codec=st.integers(0, 4),
)
PIECES = st.one_of(
    PLAIN.map(lambda batch: ([batch], True)),
    st.tuples(
        st.lists(st.integers(1, 3), min_size=1, max_size=3), st.booleans(), st.integers(7, 8)
    ).map(lambda piece: transaction(*piece)),
)


def transaction(sizes: Sequence[int], is_committed: bool, producer: int) -> Any:
    """Batches of one transaction and its marker, and whether it counts."""
    batches = [Batch((True,) * n, 0, producer, TRANSACTIONAL) for n in sizes]
    marker = COMMIT_MARKER if is_committed else ABORT_MARKER
    batches.append(Batch((True,), 0, producer, TRANSACTIONAL | CONTROL, marker))
    return batches, is_committed


def encode(batch: Batch, base_offset: int) -> bytes:
    """The batch's bytes; what aiokafka would not write is put in behind its back."""
    builder = DefaultRecordBatchBuilder(2, 0, 0, batch.producer, 0, 0, 1 << 20)
    for delta, is_kept in enumerate(batch.kept):
        if is_kept:
            name = "QQQ" if batch.has_bad_name and delta % 2 else "name"
            value = b"%d" % (base_offset + delta)
            builder.append(
                delta, timestamp=1, key=batch.marker, value=value, headers=[(name, b"x")]
            )
    if not any(batch.kept):
        builder.append(0, timestamp=1, key=None, value=None, headers=[])
    built = bytes(builder.build())
    header, records = bytearray(built[:HEADER_BYTES]), built[HEADER_BYTES:]
    if any(batch.kept):
        records = CODECS[batch.codec](records.replace(b"QQQ", BAD_NAME))
        attributes = batch.attributes | batch.codec
    else:  # kept for its producer's sequence; never compressed
        records, attributes = b"", batch.attributes
        struct.pack_into(">i", header, 57, 0)
    struct.pack_into(">qi", header, 0, base_offset, HEADER_BYTES - 12 + len(records))
    struct.pack_into(">hi", header, 21, attributes, len(batch.kept) - 1)
    content = header + records
    struct.pack_into(">I", content, 17, calc_crc32c(bytes(content[21:])))
    return bytes(content)


def fetched(content: bytes, start: int, aborted: list[tuple[int, int]]) -> Any:
    """What aiokafka holds of a partition after a fetch, and its position."""
    header_names.tolerate_bad_names()
    from aiokafka.consumer import fetcher

    async def build() -> Any:
        subscriptions = SubscriptionState()
        subscriptions.assign_from_user({TP})
        return subscriptions.subscription.assignment

    assignment = asyncio.run(build())
    state = assignment.state_value(TP)
    state.seek(start)
    records = PartitionRecords(
        TP, fetcher.MemoryRecords(content), aborted, start, None, None, True, READ_COMMITTED
    )
    result = FetchResult(TP, assignment=assignment, partition_records=records, backoff=0)
    return result, state


@given(pieces=st.lists(PIECES, min_size=1, max_size=6), skipped=st.integers(0, 5), data=st.data())
def test_chunks_cover_every_offset_once(
    pieces: list[tuple[list[Batch], bool]], skipped: int, data: st.DataObject
) -> None:
    """Their records are those that count; gaps, markers and aborted ones lie inside them."""
    content, visible, aborted, offset, first_end = b"", [], [], 100, 0
    for batches, counts in pieces:
        if not counts:
            aborted.append((batches[0].producer, offset + batches[0].gap))
        for batch in batches:
            offset += batch.gap
            content += encode(batch, offset)
            if counts and batch.marker is None:
                visible += [offset + i for i, is_kept in enumerate(batch.kept) if is_kept]
            offset += len(batch.kept)
            first_end = first_end or offset
    start = min(100 + skipped, first_end - 1)  # a fetch may begin within the first batch
    limit, limit_bytes = data.draw(st.integers(1, 7)), data.draw(st.integers(1, 80))

    result, state = fetched(content, start, aborted)
    chunks = take_chunks(result, limit, limit_bytes)

    assert [(chunk.start, chunk.next_offset) for chunk in chunks] == steps(start, offset, chunks)
    assert state.position == offset
    found = [record for chunk in chunks for record in chunk.records]
    assert [record.offset for record in found] == [o for o in visible if o >= start]
    assert all(record.value == b"%d" % record.offset for record in found)
    for chunk in chunks:
        assert len(chunk) <= limit
        assert chunk.size_bytes == sum(map(size_of, chunk.records))
        assert chunk.size_bytes <= limit_bytes or len(chunk) == 1
        assert all(chunk.start <= r.offset < chunk.next_offset for r in chunk.records)


def size_of(record: Any) -> int:
    """Bytes of a record without a key; a header has two lengths of at most five bytes."""
    headers = [part for header in record.headers for part in header]
    return len(record.value) + sum(5 + len(part) for part in headers)


def steps(start: int, end: int, chunks: list[Chunk]) -> list[tuple[int, int]]:
    """What their bounds have to be: each begins where the one before ended."""
    ends = [*(chunk.next_offset for chunk in chunks[:-1]), end]
    return list(zip([start, *ends[:-1]], ends, strict=True))


def test_a_damaged_batch_is_neither_used_nor_stepped_over() -> None:
    """What stands before it is taken; asked again from there, it is an error."""
    good = encode(Batch((True, True)), 0)
    bad = bytearray(encode(Batch((True,)), 2))
    bad[-1] ^= 1

    result, state = fetched(good + bytes(bad), 0, [])
    (chunk,) = take_chunks(result, 10)
    assert (chunk.start, chunk.next_offset, state.position) == (0, 2, 2)

    result, state = fetched(bytes(bad), 2, [])
    with pytest.raises(CorruptRecordException, match="at 2"):
        take_chunks(result, 10)
    assert state.position == 2


def test_what_was_sought_away_from_is_dropped() -> None:
    """A fetch from another position than the present one must not move it."""
    result, state = fetched(encode(Batch((True,)), 0), 0, [])
    state.seek(40)

    assert take_chunks(result, 10) == []
    assert state.position == 40
