"""Taking lists back: behind the lists from before, ahead of later ones, and nobody waits for ever.

The real stream and checkpoints; producers that take their time stand in for a Kafka whose leaders
move, which decides here what arrives when.
"""

import asyncio
import random
import signal
import time
from collections.abc import Awaitable, Callable, Collection, Iterator, Sequence
from contextlib import contextmanager
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engine.chunks import Chunk
from pipeline.engine.options import EngineOptions
from pipeline.engine.partitions import OwnedPartition
from pipeline.engine.processor import PartitionResult, Snapshot
from pipeline.engine.stream import StreamService
from state.memory import MemoryStore

DEADLINE_S = 20
OPTIONS = EngineOptions(
    kafka={},
    app_id="a",
    source="in",
    output="out",
    dead_letters="dead",
    changelog="rows",
    checkpoint_max_rows=10,
    batch_events=1,
)


class Counting:
    """Moves so many rows in each micro-batch; its lists say which micro-batch they are of."""

    def __init__(self, rows: int) -> None:
        self.rows, self.moved, self.computed, self.is_erased = rows, 0, 0, False

    def process(self, chunks: Sequence[tuple[int, Chunk]]) -> list[PartitionResult]:
        time.sleep(0.002)  # for others to run between two of them
        self.moved += self.rows
        self.computed += 1
        [partition] = dict(chunks)
        list_of_user = (b"user", b"%d" % self.computed)
        return [PartitionResult(partition, [list_of_user], [], self.moved, -1, [0])]

    def refresh(self, owned: Collection[int]) -> dict[int, int]:
        return {}

    def snapshot(self, partition: int) -> Snapshot:
        rows: list[tuple[bytes, bytes | None]] = [(b"%d" % i, b"row") for i in range(self.moved)]
        if self.is_erased:
            rows.append((b"user", None))
            log.append(("erased", self.computed))
        self.moved, self.is_erased = 0, False
        return Snapshot(rows=rows)

    def settled(self, partition: int, snapshot: Snapshot) -> None:
        return

    def sent(self, results: Sequence[PartitionResult], now_s: float) -> None:
        return


log: list[tuple[str, int]] = []
"""What arrived, and when something was erased: (what, micro-batch)."""


class Batch:
    """The records of a batch."""

    def __init__(self) -> None:
        self.values: list[bytes | None] = []

    def append(self, *, timestamp: None, key: bytes, value: bytes | None) -> bool:
        self.values.append(value)
        return True

    def close(self) -> None:
        return

    def record_count(self) -> int:
        return len(self.values)


class Slow:
    """A producer whose batches arrive some time after they were sent."""

    def __init__(self, rng: random.Random) -> None:
        self._rng = rng
        self._sent = 0

    def create_batch(self) -> Batch:
        return Batch()

    async def begin_transaction(self) -> None:
        return

    async def commit_transaction(self) -> None:
        return

    async def send_batch(self, batch: Batch, topic: str, partition: int) -> asyncio.Future[Any]:
        self._sent += 1000
        return asyncio.ensure_future(self._arrive(batch, topic, self._sent))

    async def _arrive(self, batch: Batch, topic: str, offset: int) -> Any:
        await asyncio.sleep(self._rng.choice([0, 0.001, 0.01]))
        if topic == "out":
            log.extend(("null", 0) if v is None else ("list", int(v)) for v in batch.values)
        return SimpleNamespace(offset=offset)


def offer(stream: StreamService, partition: int, offset: int) -> None:
    """Put a chunk of one record before the stream."""
    record = SimpleNamespace(offset=offset)
    chunk = Chunk([record], offset, offset + 1)
    message = SimpleNamespace(partition=partition, chunk=chunk, epoch=1)
    stream._waiting_records += 1
    stream._waiting_bytes += chunk.size_bytes
    stream._inbox.put_nowait(SimpleNamespace(message=message, ack=lambda: None))


@contextmanager
def ended_in_time() -> Iterator[None]:
    """An event loop that turns round and round hears no timeout of its own; a signal it does."""

    def fail(_signal: int, _frame: object) -> None:
        raise TimeoutError("the event loop is held")

    before = signal.signal(signal.SIGALRM, fail)
    signal.alarm(2 * DEADLINE_S)
    try:
        yield
    finally:
        signal.alarm(0)
        signal.signal(signal.SIGALRM, before)


def run(
    processor: Counting,
    seed: int,
    story: Callable[[StreamService, list[OwnedPartition]], Awaitable[None]],
) -> None:
    """Let a stream of two partitions run beside a story."""

    async def main() -> None:
        rng, store = random.Random(seed), MemoryStore()
        consumer = SimpleNamespace(epoch=1, last_known_end=lambda tp: None)
        app: Any = SimpleNamespace(consumer=consumer)
        stream = StreamService(app, OPTIONS, processor, store)  # type: ignore[arg-type]
        stream._producer = Slow(rng)  # type: ignore[assignment]
        stream.pulse.check = lambda: None  # type: ignore[method-assign]
        stream._accepting = True
        parts = [OwnedPartition(number, Slow(rng)) for number in range(2)]  # type: ignore[arg-type]
        for part in parts:
            store.open(part.number)
            stream.add(part)
        bodies: list[Any] = [stream._compute_batches, stream._emit_batches]
        tasks = [asyncio.ensure_future(body.fun(stream)) for body in bodies]
        await story(stream, parts)
        for task in tasks:
            task.cancel()
        stream.compute.shutdown()
        stream.disk.shutdown()

    log.clear()
    with ended_in_time():
        asyncio.run(asyncio.wait_for(main(), DEADLINE_S))


async def until(condition: Callable[[], bool]) -> None:
    while not condition():
        await asyncio.sleep(0.001)


@pytest.mark.parametrize("rows", [1, 12, 25])
@pytest.mark.parametrize("seed", range(4))
def test_a_list_is_taken_back_behind_those_before_and_ahead_of_later_ones(
    rows: int, seed: int
) -> None:
    """Whatever arrives late, and however far the checkpoints are behind."""
    processor, rng = Counting(rows), random.Random(seed)

    async def catch_up(stream: StreamService, parts: list[OwnedPartition]) -> None:
        for offset in range(60):
            offer(stream, 0, offset)
        while parts[0].emitted < 60:
            processor.is_erased |= rng.random() < 0.2
            stream.checkpointer.begin(parts[0])
            await asyncio.sleep(0.002)
        processor.is_erased, parts[0].moved_rows = True, 1
        await stream.checkpointer.checkpoint(parts[0])
        await until(lambda: parts[0].withdrawn_after is None)

    run(processor, seed, catch_up)

    erased = [number for what, number in log if what == "erased"]
    arrived = iter([one for one in log if one[0] != "erased"])
    assert len(erased) > 1
    expected, last = [], 0
    for number in erased:
        expected += [{("list", i) for i in range(last + 1, number + 1)}, {("null", 0)}]
        last = number
    # Lists between two nulls are of one producer, which keeps their order; here only sets count.
    for part in expected:
        assert {next(arrived) for _ in part} == part
    assert next(arrived, None) is None


def test_a_flood_of_erased_rows_holds_no_micro_batch_up_for_ever() -> None:
    """More rows than a partition may have moved come in at once, beside the micro-batches."""
    processor = Counting(1)

    async def flood(stream: StreamService, parts: list[OwnedPartition]) -> None:
        offer(stream, 0, 0)
        await until(lambda: parts[0].emitted == 1)
        await stream.checkpointer.checkpoint(parts[0])
        processor.moved = parts[0].moved_rows = 25
        offer(stream, 1, 0)
        await until(lambda: parts[1].emitted == 1)
        offer(stream, 1, 1)
        await until(lambda: parts[1].emitted == 2)

    run(processor, 0, flood)


def test_a_partition_that_is_lost_holds_nobody_up() -> None:
    """Neither lists nor what takes them back are waited for any more."""

    async def lose() -> None:
        part = OwnedPartition(0, None, withdrawn_after=1)  # type: ignore[arg-type]
        other = OwnedPartition(1, None, withdrawn_after=1, emitted=1)  # type: ignore[arg-type]
        waiting = [
            asyncio.ensure_future(part.wait_to_withdraw()),
            asyncio.ensure_future(other.wait_to_emit()),
        ]
        await asyncio.sleep(0.01)
        assert not any(task.done() for task in waiting)
        part.lose()
        other.lose()
        await asyncio.wait_for(asyncio.gather(*waiting), 5)

    asyncio.run(lose())


def test_the_pulse_is_checked_after_the_wait_for_earlier_ones() -> None:
    """The process may have been frozen within that wait, and the lists are another owner's."""
    processor = Counting(1)

    async def wait(stream: StreamService, parts: list[OwnedPartition]) -> None:
        checked: list[int] = []
        stream.pulse.check = lambda: checked.append(parts[0].emitted)  # type: ignore[method-assign]
        parts[0].withdrawn_after = 0
        offer(stream, 0, 0)
        await until(lambda: stream._computing.empty() and processor.computed == 1)
        await asyncio.sleep(0.01)
        checked.clear()
        parts[0].withdrawn_after = None
        parts[0].turn.set()
        await until(lambda: parts[0].emitted == 1)
        assert checked == [0]

    run(processor, 0, wait)
