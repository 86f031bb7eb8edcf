"""Whatever a log holds and whatever its fetches skip or repeat: no offset is stepped over."""

import asyncio
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import pytest
from faust.types import TP
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine import stream as stream_module
from pipeline.engine.chunks import Chunk, take_chunks
from pipeline.engine.stop import ExitCode
from pipeline.engine.transport import Consumer
from tests.faust_apps import OffsetProcessor, engine_app
from tests.kafka import unique_settings
from tests.property.test_pipeline_chunks import PIECES, Batch, encode, fetched

SETTINGS = unique_settings("127.0.0.1:1", Path("never-made"), partitions=1)
SOURCE = TP(SETTINGS.topics.interactions, 0)


class Log:
    """A partition's log as Kafka holds it, and what aiokafka gives of it from a position on.

    Attributes:
        visible: The offsets of records that count.
        end: The offset behind the last batch.
    """

    def __init__(self, pieces: list[tuple[list[Batch], bool]]) -> None:
        self._batches: list[tuple[int, bytes]] = []  # each with the offset behind it
        self._aborted: list[tuple[int, int, int]] = []  # producer, from, to
        self.visible: list[int] = []
        self.end = 0
        for batches, counts in pieces:
            first = self.end + batches[0].gap
            for batch in batches:
                self.end += batch.gap
                content = encode(batch, self.end)
                if counts and batch.marker is None:
                    kept = [self.end + i for i, is_kept in enumerate(batch.kept) if is_kept]
                    self.visible += kept
                self.end += len(batch.kept)
                self._batches.append((self.end, content))
            if not counts:
                self._aborted.append((batches[0].producer, first, self.end))

    def fetch(self, position: int, n_batches: int, limit: int) -> list[Chunk]:
        """Chunks from the position on, of so many batches."""
        rest = [batch for batch in self._batches if batch[0] > position][:n_batches]
        if not rest:
            return []
        # A broker names the aborted transactions that overlap what it sends.
        aborted = [
            (producer, first)
            for producer, first, to in self._aborted
            if to > position and first < rest[-1][0]
        ]
        result, _ = fetched(b"".join(content for _, content in rest), position, aborted)
        return take_chunks(result, limit)


@contextmanager
def new_consumer() -> Iterator[Consumer]:
    """The engine's consumer, not connected, at offset 0."""
    app = engine_app(SETTINGS, OffsetProcessor())
    consumer: Consumer = app.consumer
    app.topics._acking_topics.add(SOURCE.topic)
    consumer._restart_at({SOURCE: 0})
    try:
        yield consumer
    finally:
        consumer._thread.thread_loop.close()
        app.stream_service.compute.shutdown()
        app.stream_service.disk.shutdown()


@given(pieces=st.lists(PIECES, min_size=1, max_size=8), data=st.data())
def test_every_offset_is_delivered_once_and_committed_in_order(
    pieces: list[tuple[list[Batch], bool]], data: st.DataObject
) -> None:
    """Control batches, aborted and compacted records, fetches that jump; done in any order."""
    with new_consumer() as consumer:
        asyncio.run(deliver_all(consumer, Log(pieces), data))


async def deliver_all(consumer: Consumer, log: Log, data: st.DataObject) -> None:
    position, delivered, committed = 0, [], 0
    jumps = data.draw(st.lists(st.integers(0, log.end), max_size=4), label="jumps")

    async def seek(tp: TP, offset: int) -> None:
        nonlocal position
        position = offset

    async def readable(tp: TP, offset: int) -> None:
        """It is: nothing was deleted."""

    async def fetch(timeout: float) -> Any:
        nonlocal position
        if jumps and data.draw(st.booleans(), label="jump now"):
            position = jumps.pop()  # a fetch from before a seek, or one that was lost
        n_batches, limit = data.draw(st.tuples(st.integers(1, 4), st.integers(1, 5)))
        # In a thread, since what builds aiokafka's side runs a loop of its own.
        chunks = await asyncio.to_thread(log.fetch, position, n_batches, limit)
        position = chunks[-1].next_offset if chunks else log.end
        return ({SOURCE: chunks} if chunks else {}), None

    consumer._seek, consumer.require_readable = seek, readable
    consumer._wait_next_records = fetch
    while not delivered or delivered[-1].chunk.next_offset < log.end or committed < log.end:
        async for _, message in consumer.getmany(0.0):
            delivered.append(message)
        waiting = [message for message in delivered if not message.acked]
        for message in (
            data.draw(st.lists(st.sampled_from(waiting), unique=True)) if waiting else ()
        ):
            message.acked = True
        expected = committed
        for message in delivered:  # the oracle: up to the first one in work
            if not message.acked:
                break
            expected = message.chunk.next_offset
        committed = consumer._new_offset(SOURCE) or committed
        assert committed == expected
        if position == log.end and not jumps:  # nothing more comes by itself
            position = delivered[-1].chunk.next_offset if delivered else 0
            for message in delivered:
                message.acked = True

    ends = [0, *(message.chunk.next_offset for message in delivered)]
    assert [message.chunk.start for message in delivered] == ends[:-1]
    records = [record.offset for message in delivered for record in message.chunk.records]
    assert records == log.visible


class EndedError(Exception):
    """Stands for the end of the process."""


@given(
    sizes=st.lists(st.integers(1, 5), min_size=1, max_size=8),
    hole=st.tuples(st.integers(0, 7), st.integers(-4, 4)),
)
def test_a_hole_that_reaches_the_agent_ends_the_worker_before_anything_behind_it_is_work(
    sizes: list[int], hole: tuple[int, int]
) -> None:
    """Missing offsets and repeated ones; what came before is work, and nothing else."""
    at, width = hole
    starts, end = [], 0
    for i, size in enumerate(sizes):
        end = max(0, end + width) if i == at else end
        starts.append(end)
        end += size

    with pytest.MonkeyPatch.context() as patch, new_consumer() as consumer:
        taken, ended = asyncio.run(
            offer_all(consumer, list(zip(starts, sizes, strict=True)), patch)
        )

    lawful, expected = 0, 0  # the oracle
    for start, size in zip(starts, sizes, strict=True):
        if start != expected:
            break
        lawful, expected = lawful + 1, start + size
    assert taken == starts[:lawful]
    assert ended == (None if lawful == len(sizes) else ExitCode.HOLE)


async def offer_all(
    consumer: Consumer,
    chunks: list[tuple[int, int]],
    patch: pytest.MonkeyPatch,
) -> tuple[list[int], ExitCode | None]:
    """Offer (start, size) chunks as the agent does; those that became work, and how it ended."""
    service = consumer.app.stream_service
    service.open()
    codes: list[ExitCode] = []

    def end_process(code: ExitCode, *args: object) -> NoReturn:
        codes.append(code)
        raise EndedError

    patch.setattr(stream_module, "end_process", end_process)
    try:
        for start, size in chunks:
            message = consumer._to_message(SOURCE, Chunk((), start, start + size))
            message.epoch = consumer.epoch
            await service.offer(SimpleNamespace(message=message))
    except EndedError:
        pass
    taken = [service._inbox.get_nowait().message.chunk.start for _ in range(service._inbox.qsize())]
    return taken, codes[0] if codes else None
