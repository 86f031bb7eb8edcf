"""Runs of consecutive records, taken from aiokafka's fetcher without an object per record.

A chunk is what crosses Faust as one message: it knows where it starts and where the next one has
to, so a hole in the delivered offsets is visible to whoever compares the two. Private names of
aiokafka (`Fetcher`, `FetchResult`, `PartitionRecords`) are used here and in `transport`; `compat`
names the versions they are known to hold for.
"""

import asyncio
import time
from collections.abc import Callable, Collection, Sequence
from typing import Any

from aiokafka.consumer.fetcher import READ_COMMITTED, FetchResult
from aiokafka.errors import CorruptRecordException
from aiokafka.structs import TopicPartition

from pipeline.cluster.unpacked_size import BatchTooLarge

MAX_CHUNK_BYTES = 4 * 2**20
MAX_HEADER_BYTES = 10  # of a header in a batch, beside name and value: the length of each


class Chunk:
    """Consecutive records of one partition, oldest first.

    Attributes:
        records: aiokafka's decoded records (`offset`, `timestamp` in ms, `key`, `value`,
            `headers`). Empty where the offsets hold control records, aborted ones or what
            compaction left of a batch: they too have to be committed, or retention would seem to
            have removed something unread.
        start: The position it was fetched from. The record at that offset may be missing
            (compaction).
        next_offset: The position behind it: where the next chunk of the partition has to start.
        size_bytes: Keys, values and headers of the records.
        received_s: Wall clock (seconds since 1970) at which the fetch brought it.
    """

    __slots__ = ("next_offset", "received_s", "records", "size_bytes", "start")

    def __init__(
        self, records: Sequence[Any], start: int, next_offset: int, size_bytes: int = 0
    ) -> None:
        self.records = records
        self.start = start
        self.next_offset = next_offset
        self.size_bytes = size_bytes
        self.received_s = time.time()

    def __len__(self) -> int:
        return len(self.records)


def take_chunks(
    result: FetchResult, max_records: int, max_bytes: int = MAX_CHUNK_BYTES
) -> list[Chunk]:
    """Turn what one fetch brought for one partition into chunks; the position moves behind it.

    Control records and the records of aborted transactions (under read_committed) are left out; the
    position moves over them, so a chunk's `next_offset` explains them.

    Args:
        result: aiokafka's fetched data of one partition; empty afterwards.
        max_records: The most records in one chunk.
        max_bytes: The most bytes of keys, values and headers in one chunk of several records.

    Returns:
        The chunks in order, together all offsets that the position moved over; none where it was
        moved meanwhile (a seek, a pause, a new assignment).

    Raises:
        CorruptRecordException: The first batch's checksum is wrong, or it is too large to be
            unpacked. A later one ends the run before it, and raises when it is read again.
    """
    if not result.has_more() or not result.check_assignment(result._topic_partition):
        result._partition_records = None
        return []
    partition = result._partition_records
    start = next_offset = partition.next_fetch_offset
    batches = partition._records
    records: list[Any] = []
    while batches.has_next():
        batch = batches.next_batch()
        if partition._check_crcs and not batch.validate_crc():
            if not records:
                msg = f"Invalid CRC - {result._topic_partition} at {next_offset}"
                raise CorruptRecordException(msg)
            break
        if not _is_aborted(partition, batch) and not batch.is_control_batch:
            try:
                records.extend(batch)
            except BatchTooLarge as error:
                if records:
                    break
                topic, number = result._topic_partition
                msg = f"{topic} partition {number}: {error.args[0]}"
                raise BatchTooLarge(msg) from error
        next_offset = batch.next_offset
    if records and records[0].offset < start:  # a fetch may begin inside a compressed batch
        records = [record for record in records if record.offset >= start]
    partition.next_fetch_offset = next_offset
    result._update_position()
    result._partition_records = None
    return _cut(records, start, next_offset, max_records, max_bytes)


def _is_aborted(partition: Any, batch: Any) -> bool:
    """Tell whether the batch belongs to an aborted transaction, as aiokafka's own iterator does."""
    if partition._isolation_level != READ_COMMITTED or batch.producer_id is None:
        return False
    partition._consume_aborted_up_to(batch.base_offset)
    if batch.is_control_batch:
        if partition._contains_abort_marker(batch):
            partition._aborted_producers.discard(batch.producer_id)
        return False
    return bool(batch.is_transactional and batch.producer_id in partition._aborted_producers)


def _cut(
    records: list[Any], start: int, next_offset: int, max_records: int, max_bytes: int
) -> list[Chunk]:
    chunks: list[Chunk] = []
    part: list[Any] = []
    part_bytes = 0
    for record in records:
        size_bytes = len(record.key or b"") + len(record.value or b"")
        for name, value in record.headers:
            size_bytes += MAX_HEADER_BYTES + len(name) + len(value or b"")
        if part and (len(part) == max_records or part_bytes + size_bytes > max_bytes):
            chunks.append(Chunk(part, start, part[-1].offset + 1, part_bytes))
            start = chunks[-1].next_offset
            part, part_bytes = [], 0
        part.append(record)
        part_bytes += size_bytes
    if part or start < next_offset:
        chunks.append(Chunk(part, start, next_offset, part_bytes))
    return chunks


async def fetch_chunks(
    fetcher: Any,
    partitions: Collection[TopicPartition],
    timeout_s: float,
    max_records: int,
    *,
    flowing: Callable[[], bool] = lambda: True,
    on_wait: Callable[[asyncio.Future[None]], None] = lambda waiter: None,
) -> dict[TopicPartition, list[Chunk]]:
    """Wait for fetched data of the given partitions and return it as chunks.

    Args:
        fetcher: aiokafka's `Fetcher`, in the loop this runs in.
        partitions: What may be delivered now; the rest stays in the fetcher. May change while this
            waits.
        timeout_s: How long to wait for a first record.
        max_records: The most records in one chunk.
        flowing: Asked again after every wait; false ends the call at once with nothing.
        on_wait: Is given the future that is waited for; completing it ends the wait early.

    Returns:
        Chunks per partition; empty after the timeout, and where what was fetched is of no use any
        more.
    """
    deadline = time.monotonic() + timeout_s
    while flowing():
        if fetcher._subscriptions.reassignment_in_progress:
            await fetcher._subscriptions.wait_for_assignment()
            continue
        taken: dict[TopicPartition, list[Chunk]] = {}
        moved = False
        for tp in list(fetcher._records):
            # Membership is asked of the caller's own set: stock reads an emptied one
            # as "all" and drains what is paused.
            if tp not in partitions:
                if not fetcher._subscriptions.is_assigned(tp):
                    del fetcher._records[tp]
                continue
            result = fetcher._records[tp]
            is_error = type(result) is not FetchResult
            if is_error and taken:
                return taken  # the error is raised by the next call
            del fetcher._records[tp]
            fetcher._notify(fetcher._wait_consume_future)
            if is_error:
                result.check_raise()
            moved = True
            chunks = take_chunks(result, max_records)
            if chunks:
                taken[tp] = chunks
        left_s = deadline - time.monotonic()
        if taken or moved or left_s <= 0:
            return taken
        waiter = fetcher._create_fetch_waiter()
        on_wait(waiter)
        done, _ = await asyncio.wait([waiter], timeout=left_s)
        if not done or fetcher._closed:
            waiter.cancel()
            return {}
        waiter.result()
    return {}
