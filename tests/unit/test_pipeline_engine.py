"""What the engine's parts do where a broker refuses or an assignment comes at a bad moment."""

import asyncio
import math
import resource
import threading
from concurrent.futures import ThreadPoolExecutor
from contextlib import suppress
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    KafkaError,
    MessageSizeTooLargeError,
    NotLeaderForPartitionError,
    ProducerFenced,
    TopicAuthorizationFailedError,
)
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch
from faust.types import TP

from pipeline.engine.chunks import Chunk
from pipeline.engine.options import EngineOptions
from pipeline.engine.partitions import MIN_PAUSE_S, Checkpointer, OwnedPartition, remedy
from pipeline.engine.processor import PartitionResult
from pipeline.engine.sending import MAX_BATCH_BYTES
from pipeline.engine.stream import MAX_WAITING_BYTES, StreamService
from pipeline.engine.transport import Consumer
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
        at_stage=lambda stage: None,
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


def test_records_that_wait_are_bounded_by_their_bytes() -> None:
    """A few huge records fill the memory long before thousands of them wait."""

    async def offer_until_full() -> tuple[int, int, bool]:
        consumer = SimpleNamespace(epoch=1, restarted_at={TP("in", 0): 0})
        stream = StreamService(
            SimpleNamespace(consumer=consumer),
            OPTIONS,
            None,  # type: ignore[arg-type]
            None,  # type: ignore[arg-type]
        )
        stream.open()
        offered = [
            asyncio.ensure_future(
                stream.offer(
                    SimpleNamespace(
                        message=SimpleNamespace(
                            chunk=Chunk([None], n, n + 1, MAX_WAITING_BYTES // 4),
                            tp=TP("in", 0),
                            epoch=1,
                        )
                    )
                )
            )
            for n in range(9)
        ]
        await asyncio.sleep(0.01)
        taken = sum(offer.done() for offer in offered)
        batch = await stream._gather()
        await asyncio.sleep(0.01)
        goes_on = sum(offer.done() for offer in offered) > taken
        stream._finish_batch()
        await stream.drain()
        stream.compute.shutdown()
        stream.disk.shutdown()
        await asyncio.gather(*offered)
        return taken, len(batch), goes_on

    assert asyncio.run(offer_until_full()) == (5, 1, True)


@pytest.mark.parametrize("interrupted", [False, True])
def test_what_leaves_is_forgotten_though_the_next_rebalance_comes_first(interrupted: bool) -> None:
    """Rows that stayed would be taken for the newest ones when the partition comes back."""
    forgotten: list[int] = []
    store = MemoryStore()

    async def give_up_both() -> tuple[bool, bool]:
        processor = SimpleNamespace(forget=forgotten.append)
        stream = StreamService(SimpleNamespace(), OPTIONS, processor, store)  # type: ignore[arg-type]
        at_work = threading.Event()  # a batch that was abandoned because the disk stands still
        stream.compute.submit(at_work.wait)
        for number in (0, 1):
            store.open(number)
            stream.add(OwnedPartition(number, SimpleNamespace(stop=_nothing)))
        rebalance = asyncio.ensure_future(stream.keep_only(set()))
        await asyncio.sleep(0)
        usable = stream.is_usable(0), stream.is_usable(1)
        if interrupted:
            await asyncio.sleep(0.01)
            rebalance.cancel()
            await asyncio.wait([rebalance])
            rebalance = asyncio.ensure_future(stream.keep_only(set()))
            await asyncio.sleep(0.01)
            assert not rebalance.done()
        at_work.set()
        await rebalance
        stream.compute.shutdown()
        stream.disk.shutdown()
        return usable

    assert asyncio.run(give_up_both()) == (False, False)
    assert sorted(forgotten) == [0, 1]
    assert store.partitions() == set()


async def _nothing() -> None:
    """The end of a producer."""


@pytest.mark.parametrize("error", [AssertionError, AttributeError])
def test_a_partition_that_is_taken_away_at_this_moment_has_no_known_end(
    error: type[Exception],
) -> None:
    """Aiokafka asserts what its own thread may change between two lines of another."""

    class AskedTooLate(Consumer):
        def __init__(self) -> None:
            return

        def assignment(self) -> set[TP]:
            return {TP("in", 0)}

        def highwater(self, tp: TP) -> int:
            raise error

    assert AskedTooLate().last_known_end(TP("in", 0)) is None


@pytest.mark.parametrize(
    ("answered_s", "finished_s", "quiet_s"),
    [
        ({}, None, 0.0),
        ({0: 99.0, 1: 98.0}, None, 2.0),
        ({0: 99.0, 1: 40.0}, None, 60.0),
        ({0: 40.0, 1: 40.0}, 97.0, 3.0),
        ({0: 99.0, 1: -math.inf}, None, math.inf),
    ],
    ids=["nothing owned", "all answered", "one is not", "busy instead", "one never was"],
)
def test_what_flows_is_fetched_or_worked_on(
    answered_s: dict[int, float], finished_s: float | None, quiet_s: float
) -> None:
    """Kafka is away when it answers no fetch, but while there is enough to do none is sent."""
    consumer = SimpleNamespace(last_answer_s=lambda tp: answered_s[tp.partition])
    stream = StreamService(SimpleNamespace(consumer=consumer), OPTIONS, None, MemoryStore())  # type: ignore[arg-type]
    for number in answered_s:
        stream.add(OwnedPartition(number, None))  # type: ignore[arg-type]
    if finished_s is not None:
        stream._finished_s = finished_s

    assert stream.quiet_s(100.0) == quiet_s


@pytest.mark.parametrize("error", [AssertionError, AttributeError])
def test_a_partition_that_is_taken_away_at_this_moment_was_never_answered(
    error: type[Exception],
) -> None:
    """As for its end: another thread asks."""

    def asked_too_late(_: TP) -> int:
        raise error

    consumer = Consumer.__new__(Consumer)
    asked = SimpleNamespace(last_poll_timestamp=asked_too_late)
    consumer._thread = SimpleNamespace(_ensure_consumer=lambda: asked)

    assert consumer.last_answer_s(TP("in", 0)) == -math.inf


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


@pytest.mark.parametrize(
    ("error", "what_to_do"),
    [
        (NotLeaderForPartitionError(), "lrurec topics check"),  # as of a topic that was deleted
        (MessageSizeTooLargeError(), "max.message.bytes"),
        (ProducerFenced(), "which other worker"),
        (TopicAuthorizationFailedError(), "the right Read (to read) or Write (to send)"),
    ],
)
def test_a_failed_checkpoint_says_what_to_do(error: KafkaError, what_to_do: str) -> None:
    """By what the broker said."""
    assert what_to_do in remedy(error)


def test_a_worker_may_open_as_many_files_as_it_is_allowed_to_ask_for() -> None:
    """The usual soft limit of 1,024 is too little for the databases of many partitions."""
    soft, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    try:
        resource.setrlimit(resource.RLIMIT_NOFILE, (min(soft, 512), hard))
        allow_open_files()
        assert resource.getrlimit(resource.RLIMIT_NOFILE) == (hard, hard)
    finally:
        resource.setrlimit(resource.RLIMIT_NOFILE, (soft, hard))
