"""What the engine's parts do where a broker refuses or an assignment comes at a bad moment."""

import asyncio
import resource
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import MessageSizeTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from pipeline.engine.options import EngineOptions
from pipeline.engine.partitions import (
    MAX_BATCH_BYTES,
    MIN_PAUSE_S,
    Checkpointer,
    OwnedPartition,
)
from pipeline.engine.processor import PartitionResult
from pipeline.engine.stream import StreamService
from pipeline.worker.app import allow_open_files
from state.memory import MemoryStore

OPTIONS = EngineOptions(
    kafka={}, app_id="a", source="in", output="out", dead_letters="dead", changelog="rows"
)


class Refused:
    """Of a transactional producer what a broker that refuses some batches makes of it.

    As aiokafka's own: a batch that is refused fails its future, and the commit goes through.
    """

    def __init__(self, topic: str, nth: int) -> None:
        self._topic, self._nth = topic, nth
        self._sent = 0
        self.has_committed = False

    def create_batch(self) -> BatchBuilder:
        return BatchBuilder(MAX_BATCH_BYTES, DefaultRecordBatch.CODEC_NONE)

    async def begin_transaction(self) -> None:
        return

    async def send_batch(
        self, batch: BatchBuilder, topic: str, partition: int
    ) -> asyncio.Future[Any]:
        future = asyncio.get_running_loop().create_future()
        self._sent += topic == self._topic
        if topic == self._topic and self._sent == self._nth:
            future.set_exception(MessageSizeTooLargeError())
        else:
            future.set_result(SimpleNamespace(offset=0))
        return future

    async def commit_transaction(self) -> None:
        self.has_committed = True


def bare_checkpointer(kind: type[Checkpointer], threads: ThreadPoolExecutor) -> Checkpointer:
    return kind(
        OPTIONS,
        None,  # type: ignore[arg-type]  # asked for nothing
        MemoryStore(),
        compute=threads,
        disk=threads,
        on_checkpoint=lambda rows, seconds: None,
        at_stage=None,
    )


@pytest.mark.parametrize(("topic", "nth"), [("rows", 1), ("rows", 2), ("out", 1)])
def test_no_transaction_is_committed_without_a_batch_of_it(topic: str, nth: int) -> None:
    """Rows without the answers beside them, or some of the rows, would be a loss for ever."""
    producer = Refused(topic, nth)
    part = OwnedPartition(0, producer)  # type: ignore[arg-type]
    with ThreadPoolExecutor(1) as threads:
        checkpointer = bare_checkpointer(Checkpointer, threads)
        large = [(b"%d" % i, bytes(600_000)) for i in range(3)]  # a batch each

        with pytest.raises(MessageSizeTooLargeError):
            asyncio.run(checkpointer.log_rows(part, large, [(b"u", b"answer")]))

    assert not producer.has_committed


def test_a_partition_may_come_while_the_stream_waits_for_a_checkpoint() -> None:
    """It is restored while those that were kept flow, and may have more rows than are allowed."""

    async def emit() -> None:
        stream = StreamService(SimpleNamespace(), OPTIONS, None, MemoryStore())  # type: ignore[arg-type]
        stream.processor = SimpleNamespace(sent=lambda results, now_s: None)  # type: ignore[assignment]
        stream._producer = SimpleNamespace()  # type: ignore[assignment]  # nothing is sent
        full = OwnedPartition(0, None, moved_rows=2 * OPTIONS.checkpoint_max_rows)  # type: ignore[arg-type]
        stream.add(full)
        emitting = asyncio.create_task(stream._emit([], {}, []))
        await asyncio.sleep(0)
        assert not emitting.done()

        stream.add(OwnedPartition(1, None))  # type: ignore[arg-type]
        full.moved_rows = 0
        full.calm.set()

        await emitting
        stream.compute.shutdown()
        stream.disk.shutdown()

    asyncio.run(emit())


def test_a_batch_of_a_partition_that_was_lost_and_gained_again_is_not_sent() -> None:
    """What it answers was answered by another worker meanwhile: its lists are old."""

    async def emit() -> OwnedPartition:
        stream = StreamService(SimpleNamespace(), OPTIONS, None, MemoryStore())  # type: ignore[arg-type]
        stream.processor = SimpleNamespace(sent=lambda results, now_s: None)  # type: ignore[assignment]
        stream._producer = SimpleNamespace()  # type: ignore[assignment]  # has no way to send
        before, now = OwnedPartition(0, None, lost=True), OwnedPartition(0, None)  # type: ignore[arg-type]
        stream.add(now)
        event = SimpleNamespace(message=SimpleNamespace(partition=0))
        await stream._emit([event], {0: before}, [PartitionResult(0, [(b"u", b"old")])])
        stream.compute.shutdown()
        stream.disk.shutdown()
        return now

    assert asyncio.run(emit()).events == []


def test_many_partitions_take_turns_at_a_bounded_rate() -> None:
    """Each is due once an interval, but a worker takes no more than 80 checkpoints a second."""
    begun: list[int] = []

    class Recorder(Checkpointer):
        def begin(self, part: OwnedPartition) -> None:
            begun.append(part.number)

    async def run(partitions: int, seconds: float) -> None:
        begun.clear()
        with ThreadPoolExecutor(1) as threads:
            recorder = bare_checkpointer(Recorder, threads)
            parts = {i: OwnedPartition(i, None) for i in range(partitions)}  # type: ignore[arg-type]
            with suppress(TimeoutError):
                async with asyncio.timeout(seconds):
                    await recorder.run(parts)

    asyncio.run(run(partitions=64, seconds=0.4))
    assert 1 < len(begun) <= 0.4 / MIN_PAUSE_S + 1
    assert begun == [(begun[0] + i) % 64 for i in range(len(begun))]

    asyncio.run(run(partitions=2, seconds=0.5))
    assert 1 < len(begun) <= 0.5 / (OPTIONS.checkpoint_interval_s / 2) + 1


def test_a_worker_may_open_as_many_files_as_it_is_allowed_to_ask_for() -> None:
    """The usual soft limit of 1,024 is too little for the databases of many partitions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
