"""Micro-batches: chunks in, outputs out at once, durability behind them by checkpoints.

Two micro-batches are in flight: while the outputs of one leave, the next is computed in the compute
thread. Nothing heavy runs on the event loop, and nothing escapes: an unexpected error ends the
process.
"""

import asyncio
import math
import time
from collections.abc import Callable, Iterable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import Any

from aiokafka import AIOKafkaProducer
from faust.types import TP
from mode import Service

from pipeline.engine.chunks import Chunk
from pipeline.engine.clients import start_client, stop_quietly
from pipeline.engine.options import EngineOptions
from pipeline.engine.partitions import Checkpointer, OwnedPartition
from pipeline.engine.processor import PartitionResult, Processor
from pipeline.engine.pulse import Pulse
from pipeline.engine.sending import MAX_BATCH_BYTES, send_dead_letters, send_records
from pipeline.engine.service_log import SERVICE_LOG
from pipeline.engine.stop import ExitCode, end_process, ending_on_error
from state.store import StateStore

GATHER_TURNS = 4
MAX_BATCH_BYTES_IN = 16 * 2**20  # records of a micro-batch
MAX_WAITING_BYTES = 64 * 2**20  # records that wait for one
REFRESH_PERIOD_S = 1.0


class StreamService(Service):
    """Everything between the agent and the commit.

    Args:
        app: The engine's app.
        options: Engine options.
        processor: Turns records into rows and outputs.
        store: Keeps the rows.
        on_checkpoint: Is told (rows, seconds) after each checkpoint.
        at_stage: For crash tests: told every stage that is reached.
    """

    logger = SERVICE_LOG

    def __init__(
        self,
        app: Any,
        options: EngineOptions,
        processor: Processor,
        store: StateStore,
        *,
        on_checkpoint: Callable[[int, float], None] = lambda rows, seconds: None,
        at_stage: Callable[[str], None] = lambda stage: None,
        **kwargs: Any,
    ) -> None:
        self.app = app
        self.options = options
        self.processor = processor
        self.store = store
        self.partitions: dict[int, OwnedPartition] = {}
        self.compute = ThreadPoolExecutor(1, thread_name_prefix="compute")
        self.disk = ThreadPoolExecutor(1, thread_name_prefix="disk")
        self.checkpointer = Checkpointer(
            options,
            processor,
            store,
            compute=self.compute,
            disk=self.disk,
            on_checkpoint=on_checkpoint,
            at_stage=at_stage,
        )
        self._at_stage = at_stage
        self._inbox: asyncio.Queue[Any] = asyncio.Queue()
        self._computing: asyncio.Queue[
            tuple[list[Any], dict[int, OwnedPartition], asyncio.Future[list[PartitionResult]]]
        ] = asyncio.Queue(1)
        self._waiting_records = self._waiting_bytes = 0
        self._room, self._idle = asyncio.Event(), asyncio.Event()
        self._idle.set()
        self._in_flight = 0
        self._finished_s = -math.inf
        self._accepting = False
        self._position: dict[Any, int] = {}  # where the next chunk of a partition has to start
        self._producer: AIOKafkaProducer | None = None
        self._giving_up: asyncio.Future[None] | None = None
        self.pulse = Pulse(options, self.has_work)
        super().__init__(**kwargs)

    async def on_start(self) -> None:
        """Open the producer of the outputs and start watching the process's own pulse."""
        producer = AIOKafkaProducer(
            **self.options.kafka,
            enable_idempotence=True,
            max_batch_size=MAX_BATCH_BYTES,
            compression_type=self.options.compression,
        )
        await start_client(producer)
        self._producer = producer
        self.pulse.start()

    # --- intake

    def has_work(self) -> bool:
        """Tell whether records wait or are being worked on."""
        return self._waiting_records > 0 or self._in_flight > 0

    async def offer(self, event: Any) -> None:
        """Take one chunk from the agent; waits while enough of them are queued.

        A chunk that does not follow the one before it ends the process: the hole may never be
        acknowledged.
        """
        message, consumer = event.message, self.app.consumer
        chunk, tp, epoch = message.chunk, message.tp, message.epoch
        if epoch != consumer.epoch:
            return
        expected = self._position.get(tp, consumer.restarted_at[tp])
        if chunk.start != expected:
            end_process(
                ExitCode.HOLE,
                "%s partition %d: hole in the delivered offsets, chunk starts at %d, expected "
                "%d. Nothing of it was "
                "acknowledged; start the worker again.",
                tp.topic,
                tp.partition,
                chunk.start,
                expected,
            )
        self._position[tp] = chunk.next_offset
        while self._is_full() and epoch == consumer.epoch:
            self._room.clear()
            await self._room.wait()
        if epoch == consumer.epoch and self._accepting:
            self._waiting_records += len(chunk)
            self._waiting_bytes += chunk.size_bytes
            self._inbox.put_nowait(event)

    def _is_full(self) -> bool:
        return (
            self._waiting_records > 4 * self.options.batch_events
            or self._waiting_bytes > MAX_WAITING_BYTES
        )

    def _take(self, event: Any) -> Chunk:
        """Return what was taken from the inbox, which has more room now."""
        chunk: Chunk = event.message.chunk
        self._waiting_records -= len(chunk)
        self._waiting_bytes -= chunk.size_bytes
        self._room.set()
        return chunk

    async def _gather(self) -> list[Any]:
        events = [await self._inbox.get()]
        self._in_flight += 1
        self._idle.clear()
        chunk = self._take(events[0])
        records, size_bytes, idle_turns = len(chunk), chunk.size_bytes, 0
        # The chunks of one fetch come one by one, a turn or two of the loop apart.
        while (
            records < self.options.batch_events
            and size_bytes < MAX_BATCH_BYTES_IN
            and idle_turns < GATHER_TURNS
        ):
            if self._inbox.empty():
                idle_turns += 1
                await asyncio.sleep(0)
            else:
                events.append(self._inbox.get_nowait())
                chunk = self._take(events[-1])
                records, size_bytes = records + len(chunk), size_bytes + chunk.size_bytes
                idle_turns = 0
        return events

    # --- micro-batches

    @Service.task
    async def _compute_batches(self) -> None:
        loop = asyncio.get_running_loop()
        with ending_on_error("a micro-batch"):
            while True:
                gathered = await self._gather()
                events = [event for event in gathered if self._is_current(event)]
                if not events:
                    self._finish_batch()
                    continue
                pairs = [(event.message.partition, event.message.chunk) for event in events]
                parts = {number: self.partitions[number] for number, _ in pairs}
                future = loop.run_in_executor(self.compute, self._process, pairs, parts)
                await self._computing.put((events, parts, future))

    def _process(
        self, pairs: Sequence[tuple[int, Chunk]], parts: Mapping[int, OwnedPartition]
    ) -> list[PartitionResult]:
        """Compute a micro-batch; in the compute thread."""
        results = self.processor.process(pairs)
        for part in parts.values():
            part.computed += 1
        if self.options.transactional:
            for result in results:
                part = parts[result.partition]
                part.unsent.append(result)
                part.unsent_outputs += len(result.outputs)
        return results

    @Service.task
    async def _emit_batches(self) -> None:
        with ending_on_error("a micro-batch"):
            while True:
                events, parts, future = await self._computing.get()
                results = await future
                self._at_stage("computed")
                await self._emit(events, parts, results)
                self._at_stage("sent")
                self._finish_batch()

    @Service.task
    async def _take_checkpoints(self) -> None:
        with ending_on_error("taking checkpoints"):
            await self.checkpointer.run(self.partitions)

    @Service.task
    async def _refresh(self) -> None:
        loop = asyncio.get_running_loop()
        with ending_on_error("taking up a release or commands about users"):
            while not self.should_stop:
                parts = dict(self.partitions)
                moved = await loop.run_in_executor(self.compute, self.processor.refresh, set(parts))
                for number, rows in moved.items():
                    part = parts[number]
                    part.moved_rows = max(rows, part.moved_rows)
                    self._begin_if_full(part)
                await self.sleep(REFRESH_PERIOD_S)

    def _is_current(self, event: Any) -> bool:
        return bool(
            self._accepting
            and event.message.epoch == self.app.consumer.epoch
            and self.is_usable(event.message.partition)
        )

    def _finish_batch(self) -> None:
        self.pulse.progress()
        self._finished_s = time.time()
        self._in_flight -= 1
        if self._in_flight == 0:
            self._idle.set()

    async def _emit(
        self,
        events: Iterable[Any],
        parts: Mapping[int, OwnedPartition],
        results: Sequence[PartitionResult],
    ) -> None:
        """Send outputs and dead letters now; hand the chunks to the next checkpoint.

        A partition that was lost and gained again since the batch began is another one.
        """
        assert self._producer is not None
        chunks: dict[int, list[Any]] = {}
        for event in events:
            chunks.setdefault(event.message.partition, []).append(event)
        for result in results:
            part = parts[result.partition]
            await part.wait_to_emit()
            if part.lost:
                continue
            next_offset = chunks[part.number][-1].message.chunk.next_offset
            if result.newest_offset >= next_offset:
                await self._require_same_log(part.number, result.newest_offset)
            self.pulse.check()  # a batch from before a freeze must not leave, waits included
            if not self.options.transactional:
                sent = await send_records(
                    self._producer, self.options.output, part.number, result.outputs
                )
                part.confirmations.extend(future for future, _ in sent)
            part.emitted += 1
            part.turn.set()
            part.confirmations += await send_dead_letters(
                self._producer, self.options, part.number, result.dead_letters
            )
            part.events.extend(chunks[part.number])
            part.next_offset = next_offset
            part.moved_rows = max(result.moved_rows, part.unsent_outputs)
            self._begin_if_full(part)
        if not self.options.transactional:
            self.processor.sent(results, time.time())
        for part in list(self.partitions.values()):  # others may be added meanwhile
            while part.moved_rows >= 2 * self.options.checkpoint_max_rows and part.is_waited_for():
                part.calm.clear()
                self.checkpointer.begin(part)
                await part.calm.wait()

    def _begin_if_full(self, part: OwnedPartition) -> None:
        if part.moved_rows >= self.options.checkpoint_max_rows:
            self.checkpointer.begin(part)

    async def _require_same_log(self, number: int, newest_offset: int) -> None:
        """End the process where a row reflects an offset that its partition does not have yet.

        Asked only of one behind what was just read. The topic was made anew: by offset its events
        would seem to be applied already, and would be dropped without a word.
        """
        consumer, tp = self.app.consumer, TP(self.options.source, number)
        end = consumer.last_known_end(tp)
        if end is not None and newest_offset >= end:  # as of the last fetch; ask again
            await consumer.require_readable(tp, newest_offset + 1)

    def lags(self) -> dict[int, int]:
        """Return, per owned partition, how many source offsets lie behind what was answered."""
        consumer, lags = self.app.consumer, {}
        for number, part in self.partitions.items():
            tp = TP(self.options.source, number)
            end = consumer.last_known_end(tp)
            position = part.next_offset
            if position is None:
                position = consumer.restarted_at.get(tp)
            if end is not None and position is not None:
                lags[number] = max(0, end - position)
        return lags

    def quiet_s(self, now_s: float) -> float:
        """Return for how long an owned partition may not have flowed, the worst of them.

        So long ago Kafka last answered a fetch of it, or the last micro-batch was finished: while
        there is enough to do nothing is fetched. Infinite where neither ever was, 0 where nothing
        is owned. May be called from any thread.

        Args:
            now_s: Unix time.
        """
        answers = [
            self.app.consumer.last_answer_s(TP(self.options.source, number))
            for number in list(self.partitions)
        ]
        return now_s - max(self._finished_s, min(answers)) if answers else 0.0

    # --- ownership

    def is_usable(self, partition: int) -> bool:
        """Tell whether the partition is owned and not lost."""
        part = self.partitions.get(partition)
        return part is not None and not part.lost

    def add(self, part: OwnedPartition) -> None:
        """Own a partition that was fenced and restored."""
        self.partitions[part.number] = part

    async def keep_only(self, partitions: set[int]) -> None:
        """Give up every other partition: its rows are forgotten, its store is closed.

        Cancelled, it goes on all the same, and the next call waits for it: rows that stayed would
        be taken for the newest when the partition comes back.
        """
        leaving = [self.partitions.pop(number) for number in set(self.partitions) - partitions]
        for part in leaving:  # all of them before anything is waited for
            part.lose()
            if part.task is not None:
                part.task.cancel()
        self._giving_up = asyncio.ensure_future(self._give_up(leaving, self._giving_up))
        await asyncio.shield(self._giving_up)

    async def _give_up(
        self, leaving: Iterable[OwnedPartition], earlier: asyncio.Future[None] | None
    ) -> None:
        if earlier is not None:
            await earlier
        loop = asyncio.get_running_loop()
        for part in leaving:
            await loop.run_in_executor(self.compute, self.processor.forget, part.number)
            await loop.run_in_executor(self.disk, self.store.close, part.number)
            self.add_future(stop_quietly(part.producer))

    def open(self) -> None:
        """Take chunks again, from the positions that the consumer was set to."""
        self._position.clear()
        self._accepting = True

    async def drain(self) -> None:
        """Drop what is not begun, finish what is, checkpoint; abandon what takes too long."""
        self._accepting = False
        while not self._inbox.empty():
            self._take(self._inbox.get_nowait())
        self._room.set()
        try:
            async with asyncio.timeout(self.options.drain_timeout_s):
                await self._idle.wait()
                await asyncio.gather(
                    *[self.checkpointer.checkpoint(part) for part in self.partitions.values()]
                )
        except TimeoutError:
            self.log.warning(
                "work in flight took longer than %.1f s: abandoned, it is read again by the next "
                "owner",
                self.options.drain_timeout_s,
            )
            for part in self.partitions.values():
                part.lose()

    async def on_stop(self) -> None:
        """Stop checkpoints and producers; the store is closed by whoever opened it."""
        self.pulse.stop()
        if self._giving_up is not None:
            self._giving_up.cancel()
        producers = [part.producer for part in self.partitions.values()]
        for part in self.partitions.values():
            part.lose()
            if part.task is not None:
                part.task.cancel()
        if self._producer is not None:
            producers.append(self._producer)
        await asyncio.gather(*[stop_quietly(producer) for producer in producers])
        self.compute.shutdown(wait=False)
        self.disk.shutdown(wait=False)
