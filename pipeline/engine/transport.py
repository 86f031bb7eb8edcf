"""Faust's Kafka transport with chunks for records, positions that cannot skip, a bounded stop.

Chosen by the URL scheme `lrurec://` of the broker. What stock Faust does at these seams, and why it
loses events there, is listed in `compat.FAULTS`; each override names the entry it answers.
"""

import asyncio
import contextlib
import math
from collections import defaultdict, deque
from collections.abc import AsyncIterator, Awaitable, Callable, Iterable, Mapping
from typing import Any, ClassVar

import uvloop
from aiokafka.errors import CorruptRecordException, KafkaError
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import TRANSPORTS
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from faust.types.tuples import ConsumerMessage

from pipeline.engine.chunks import Chunk
from pipeline.engine.consumer_thread import ConsumerThread
from pipeline.engine.positions import require_readable
from pipeline.engine.service_log import SERVICE_LOG
from pipeline.engine.stop import end_by

SCHEME = "lrurec"
COMMIT_LIMIT_S = 5.0


def register() -> None:
    """Make Faust find this transport under `lrurec://`."""
    TRANSPORTS.aliases[SCHEME] = "pipeline.engine.transport:Transport"


class ChunkMessage(ConsumerMessage):
    """A chunk as Faust's message; `offset` is the last it covers, so stock bookkeeping holds."""

    __slots__ = ("chunk", "epoch")

    chunk: Chunk
    epoch: int


class Consumer(driver.Consumer):
    """Faust's consumer where every message is a chunk.

    Attributes:
        epoch: Grows whenever what was fetched before must not be used any more.
        fetching: How many fetches are under way.
        restarted_at: Per partition, where reading began after the last seek.
        found_notes: Per partition, what the commit that was found says of the changelog.
        notes: Per partition, what commits say from now on, instead of what was found.
    """

    logger = SERVICE_LOG
    epoch: int = 0
    fetching: int = 0

    def __init__(self, *args: Any, **kwargs: Any) -> None:
        self._inflight: defaultdict[TP, deque[ChunkMessage]] = defaultdict(
            deque
        )  # in order of delivery
        self._expected: dict[TP, int] = {}  # where the next chunk has to start
        self.restarted_at: dict[TP, int] = {}
        self.found_notes: dict[TP, bytes] = {}
        self.notes: dict[TP, bytes] = {}
        self._room = asyncio.Event()
        super().__init__(*args, **kwargs)

    def _new_consumer_thread(self) -> ConsumerThread:
        thread = ConsumerThread(
            self, loop=self.loop, thread_loop=uvloop.new_event_loop(), beacon=self.beacon
        )
        thread._close_thread_loop_on_stop = True  # as it does with a loop that it made itself
        return thread

    # --- delivery (faults: holes-after-rebalance, live-active-set)

    async def _drain_messages(self, fetcher: Any) -> None:
        """Deliver chunks until told to stop.

        Stock makes two tasks per message, to leave a delivery that waits when the flow is
        suspended. Only one that begins while it is suspended can wait so long: a full queue is
        emptied by the agent, and in a rebalance by Faust.
        """
        flow = self.app.flow_control
        try:
            while not (self.should_stop or fetcher.should_stop):
                chunks = self.getmany(timeout=1.0)
                await asyncio.sleep(0)
                async for _, message in chunks:
                    if flow.is_active():
                        await self.callback(message)
                    else:
                        await self.wait_first(self.callback(message), self.suspend_flow.wait())
        except (*self.consumer_stopped_errors, asyncio.CancelledError):
            if not self.app.should_stop:
                raise

    async def getmany(self, timeout: float) -> AsyncIterator[tuple[TP, ChunkMessage]]:
        """Yield fetched chunks; where one does not follow the last, read again from there."""
        records, _ = await self._wait_next_records(timeout)
        epoch, acks_enabled_for = self.epoch, self.app.topics.acks_enabled_for
        if not records or self.should_stop:
            return
        for tp, chunk in self.scheduler.iterate(records):
            if not self.flow_active or epoch != self.epoch:
                return
            if not acks_enabled_for(tp.topic) or tp in self._paused_partitions:
                continue
            expected = self._expected.get(tp)
            if expected is not None and expected != chunk.start:
                self.log.warning(
                    "%r: chunk at %d, expected %d: seek back", tp, chunk.start, expected
                )
                # Where it is not there any more, aiokafka would jump to the log's start again and
                # again.
                await self.require_readable(tp, expected)
                if epoch != self.epoch:  # rebalanced meanwhile: it may be another's, or elsewhere
                    return
                await driver.Consumer.seek(self, tp, expected)
                continue
            self._expected[tp] = chunk.next_offset
            message = self._to_message(tp, chunk)
            message.epoch = epoch
            self._inflight[tp].append(message)
            yield tp, message

    def last_known_end(self, tp: TP) -> int | None:
        """Return where the partition ended as of the last fetch; None where nobody knows.

        aiokafka is asked from another thread than its own, in which the assignment may change
        between any two lines.
        """
        try:
            end: int | None = self.highwater(tp) if tp in self.assignment() else None
        except (AssertionError, AttributeError):
            return None
        return end

    def last_answer_s(self, tp: TP) -> float:
        """Return when Kafka last answered a fetch of the partition, Unix time; never: -infinity.

        May be called from any thread.
        """
        consumer = self._thread._ensure_consumer()
        try:
            answered_ms = consumer.last_poll_timestamp(driver.ensure_aiokafka_TP(tp))
        except (AssertionError, AttributeError):  # taken away at this moment: see `last_known_end`
            answered_ms = None
        return -math.inf if answered_ms is None else answered_ms / 1000

    async def require_readable(self, tp: TP, position: int) -> None:
        """End the process where the partition's log does not reach from or up to a position."""
        partition = driver.ensure_aiokafka_TP(tp)
        await self._thread.call_thread(
            require_readable, self._thread._ensure_consumer(), {partition: position}, [partition]
        )

    async def _getmany(self, active_partitions: Any, timeout: float) -> Any:
        epoch, thread = self.epoch, self._thread
        self.fetching += 1
        try:
            # Stock's queue of calls between the threads costs more than the fetch itself.
            fetch = thread._fetch_records(thread._ensure_consumer(), active_partitions, timeout)
            records = await asyncio.wrap_future(
                asyncio.run_coroutine_threadsafe(fetch, thread.thread_loop)
            )
        except KafkaError as error:  # a damaged batch, say; stock would go down over pages of log
            if isinstance(error, CorruptRecordException):
                await self._commit_delivered()
            end_by(error, "reading the interactions")
        finally:
            self.fetching -= 1
        return records if epoch == self.epoch else {}

    async def _commit_delivered(self) -> None:
        """Wait for what was delivered, and commit it: what follows may be stepped over."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(self.app.engine_options.drain_timeout_s):
                while not all(message.acked for run in self._inflight.values() for message in run):
                    await asyncio.sleep(0.02)
        await self._commit_all()

    def _to_message(self, tp: TP, chunk: Chunk) -> ChunkMessage:
        message = ChunkMessage(
            tp.topic,
            tp.partition,
            chunk.next_offset - 1,
            chunk.received_s,
            0,
            (),
            None,
            b"",
            None,
            0,
            0,
            tp,
            generation_id=self.app.consumer_generation_id,
        )
        message.chunk = chunk
        return message

    async def _wait_next_records(self, timeout: float) -> Any:
        # Stock sleeps a whole second when no partition is active: a moved partition would
        # stall that long.
        while self.flow_active and not self.should_stop and not self._get_active_partitions():
            self._room.clear()
            await self.wait_first(self._room.wait(), self.suspend_flow.wait(), timeout=1.0)
        return await super()._wait_next_records(timeout)

    def on_buffer_drop(self, tp: TP) -> None:
        """Deliver the partition again."""
        super().on_buffer_drop(tp)
        self._room.set()

    def stop_flow(self) -> None:
        """Deliver nothing more; what is being fetched now is dropped when it arrives."""
        super().stop_flow()
        self.epoch += 1
        self._wake_thread()

    def resume_partitions(self, tps: Iterable[TP]) -> None:
        """Deliver these partitions, at once."""
        super().resume_partitions(tps)
        self._room.set()
        self._wake_thread()

    async def verify_all_partitions_active(self) -> None:
        """Complain of nothing: `pipeline.engine.pulse` watches.

        Stock would log an error a minute for each partition of the changelog: it never fetches one.
        """

    def _wake_thread(self) -> None:
        if self._thread.thread_loop is not None and self._thread.thread_loop.is_running():
            self._thread.thread_loop.call_soon_threadsafe(self._thread.wake)

    # --- positions and commits (faults: gap-commit, commit-past-unacked)

    async def _add_gap(self, tp: TP, offset_from: int, offset_to: int) -> None:
        """Book nothing: a chunk knows the offset behind it, and a hole is never processed."""

    def _filter_tps_with_pending_acks(self, topics: Any = None) -> list[TP]:
        return [tp for tp in self._inflight if topics is None or tp in topics or tp.topic in topics]

    def _new_offset(self, tp: TP) -> int | None:
        """Return the offset behind the acknowledged run of chunks that begins with the oldest."""
        waiting, offset = self._inflight[tp], None
        while waiting and waiting[0].acked:
            offset = waiting.popleft().chunk.next_offset
        self._acked[tp].clear()
        self._acked_index[tp].clear()
        return offset

    async def seek(self, partition: TP, offset: int) -> None:
        """Read the partition from the offset on."""
        await super().seek(partition, offset)
        self._restart_at({partition: offset})

    async def perform_seek(self) -> None:
        """Seek every source partition to what is committed; all behind it is read again."""
        tps = [tp for tp in self.assignment() if not self._is_changelog_tp(tp)]
        offsets = await self._thread.call_thread(self._thread.seek_sources, tps)
        for tp, offset in offsets.items():
            self._committed_offset[tp] = offset or None
        self._restart_at(offsets)

    async def commit_and_seek(self, tp: TP, offset: int) -> None:
        """Commit an offset, also a lower one than before, and read on from there."""
        await self._thread.call_thread(self._thread._commit, {tp: offset})
        await self.seek(tp, offset)
        self._committed_offset[tp] = offset or None

    async def beginning(self, tp: TP) -> int:
        """Ask for the first offset that a partition has."""
        partition = driver.ensure_aiokafka_TP(tp)
        consumer = self._thread._ensure_consumer()
        found = await self._thread.call_thread(consumer.beginning_offsets, [partition])
        return int(found[partition])

    def note(self, tp: TP) -> str:
        """Return what a commit of the partition says of its changelog."""
        return self.notes.get(tp, self.found_notes.get(tp, b"")).decode()

    def _restart_at(self, offsets: Mapping[Any, int]) -> None:
        for any_tp, offset in offsets.items():
            tp = ensure_TP(any_tp)
            self._inflight.pop(tp, None)
            self._expected[tp] = self.restarted_at[tp] = offset

    # --- rebalance and stop (faults: stop-in-rebalance)

    async def wait_empty(self) -> None:
        """Take a last checkpoint, then commit what it covers."""
        await self.app.stream_service.drain()
        await self._commit_all()

    async def _commit_all(self) -> None:
        """Commit what is acknowledged, or give up: what is not committed is read again.

        Not cancelled, which Faust swallows: a rebalance goes on while aiokafka tries for ever to
        commit, as it does where a topic is gone.
        """
        await asyncio.wait([self.add_future(self._commit_twice())], timeout=COMMIT_LIMIT_S)

    async def _commit_twice(self) -> None:
        """Commit; twice, because one that meets a running one returns and has committed nothing."""
        await self.commit()
        await self.commit()

    async def on_partitions_revoked(self, revoked: set[TP]) -> None:
        """Finish or abandon the work in flight, then forget the partitions."""
        await super().on_partitions_revoked(revoked)
        for tp in revoked:
            self._inflight.pop(tp, None)
            self._expected.pop(tp, None)

    async def threadsafe_partitions_revoked(self, receiver_loop: Any, revoked: set[TP]) -> None:
        """Run `on_partitions_revoked` in the main loop."""
        await self._in_main_loop(receiver_loop, self.on_partitions_revoked, revoked)

    async def threadsafe_partitions_assigned(
        self, receiver_loop: Any, assigned: set[TP], generation_id: int = 0
    ) -> None:
        """Run `on_partitions_assigned` in the main loop."""
        await self._in_main_loop(
            receiver_loop, self.on_partitions_assigned, assigned, generation_id
        )

    async def _in_main_loop(
        self, loop: Any, callback: Callable[..., Awaitable[None]], *args: Any
    ) -> None:
        """Like stock, but without waiting for a main loop that is shutting down."""
        if self.app.should_stop:
            return
        promise = await self._method_queue.call(loop.create_future(), callback, *args)
        while not promise.done() and not self.app.should_stop:
            await asyncio.wait([promise], timeout=0.05)


class Producer(driver.Producer):
    """Faust's producer; the engine sends nothing through it."""

    logger = SERVICE_LOG

    async def flush(self) -> None:
        """Wait for nothing: every output is confirmed before its chunk is acknowledged."""


class Transport(driver.Transport):
    """The transport behind `lrurec://host:port`."""

    Consumer: ClassVar[type[Consumer]] = Consumer
    Producer: ClassVar[type[Producer]] = Producer
    default_port = 9092
