"""An owned partition: its fence, the work that waits for a checkpoint, and the checkpoint itself.

Order of a checkpoint, the same in every crash test: (1) rows into the changelog, in one transaction
of the partition's own transactional id; (2) outputs and dead letters confirmed; (3) rows and
changelog position into the store, in one batch; (4) chunks acknowledged. So the store is never
ahead of the changelog and a commit never ahead of the store.
"""

import asyncio
import time
from collections.abc import Awaitable, Callable, Mapping, Sequence
from concurrent.futures import Executor
from dataclasses import dataclass, field
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import (
    InvalidProducerEpoch,
    InvalidProducerIdMapping,
    KafkaError,
    ProducerFenced,
)

from pipeline.cluster.rights import missing_right
from pipeline.engine.clients import start_client
from pipeline.engine.marks import Mark
from pipeline.engine.options import EngineOptions
from pipeline.engine.processor import PartitionResult, Processor, Snapshot
from pipeline.engine.sending import MAX_BATCH_BYTES, TOO_LARGE, send_records
from pipeline.engine.stop import ExitCode, end_by, end_process
from state.store import StateStore

MIN_PAUSE_S = 1 / 80  # between two checkpoints of one worker


@dataclass(eq=False)
class OwnedPartition:
    """One source partition of this worker, from its fence to its loss.

    Attributes:
        number: Partition number.
        producer: Producer under the partition's transactional id; initialising it fenced every
            former owner.
        mark: Names its changelog, see `Mark.log`.
        events: Faust events whose chunks wait for a checkpoint, in order.
        confirmations: Futures of their outputs and dead letters.
        unsent: Results whose outputs leave with the rows, in one transaction; filled and taken in
            the compute thread, so that they are those of the rows that a snapshot holds.
        unsent_outputs: How many outputs they hold.
        moved_rows: Rows that no snapshot has taken yet, or unsent outputs if there are more.
        next_offset: Source offset behind what was answered; None before the first answer.
        position: Changelog offset of the last row written; -1 before the first.
        computed: Micro-batches so far; counted in the compute thread.
        emitted: Of these, whose outputs were sent.
        withdrawn_after: Outputs of keys are being taken back: those of so many micro-batches are to
            leave before, and later ones behind; None: of none. Set in the compute thread.
        turn: Is set when a wait for one of these may be over.
        is_due: A checkpoint is to follow the one under way.
        lost: Another worker may own it: nothing of it may be sent or acknowledged.
    """

    number: int
    producer: AIOKafkaProducer
    mark: bytes = b""
    events: list[Any] = field(default_factory=list)
    confirmations: list[Awaitable[Any]] = field(default_factory=list)
    unsent: list[PartitionResult] = field(default_factory=list)
    unsent_outputs: int = 0
    moved_rows: int = 0
    next_offset: int | None = None
    position: int = -1
    computed: int = 0
    emitted: int = 0
    withdrawn_after: int | None = None
    is_due: bool = False
    lost: bool = False
    lock: asyncio.Lock = field(default_factory=asyncio.Lock)
    calm: asyncio.Event = field(default_factory=asyncio.Event)
    turn: asyncio.Event = field(default_factory=asyncio.Event)
    task: asyncio.Future[None] | None = None

    def has_work(self) -> bool:
        """Tell whether there is something for a checkpoint."""
        return bool(self.events) or self.moved_rows > 0

    def is_waited_for(self) -> bool:
        """Tell whether its checkpoint may be waited for: not while that waits for outputs."""
        return not self.lost and self.withdrawn_after is None

    def lose(self) -> None:
        """Note that another worker may own it; nobody waits for it any more."""
        self.lost = True
        self.calm.set()
        self.turn.set()

    async def wait_to_emit(self) -> None:
        """Let what takes earlier outputs back leave before later ones of the same keys."""
        while self._is_withdrawing() and self.emitted >= (self.withdrawn_after or 0):
            await self._next_turn()

    async def wait_to_withdraw(self) -> None:
        """Let the outputs that are to be taken back leave before."""
        while self._is_withdrawing() and self.emitted < (self.withdrawn_after or 0):
            await self._next_turn()

    def _is_withdrawing(self) -> bool:
        return self.withdrawn_after is not None and not self.lost

    async def _next_turn(self) -> None:
        self.turn.clear()
        await self.turn.wait()


def remedy(error: KafkaError) -> str:
    """Return what to do about an error that ended a checkpoint."""
    if isinstance(error, ProducerFenced | InvalidProducerEpoch):
        return "see which other worker owns the partition"
    if isinstance(error, InvalidProducerIdMapping):
        return (
            "it had no events for so long that the broker forgot its transactional id "
            "(transactional.id.expiration.ms, a week)"
        )
    if isinstance(error, TOO_LARGE):
        return "raise max.message.bytes of the topics that the worker writes (lrurec topics check)"
    return missing_right(error) or "see to the broker, and to the topics (lrurec topics check)"


class Checkpointer:
    """Takes the checkpoints of owned partitions.

    Args:
        options: Engine options.
        processor: Holder of the rows.
        store: Where rows are kept.
        compute: The one thread in which the processor may be called.
        disk: The thread in which the store is written.
        on_checkpoint: Is told (rows, seconds) after each checkpoint.
        at_stage: Told the name of each stage right after it is reached; crash tests stop the
            process there.
    """

    def __init__(
        self,
        options: EngineOptions,
        processor: Processor,
        store: StateStore,
        *,
        compute: Executor,
        disk: Executor,
        on_checkpoint: Callable[[int, float], None],
        at_stage: Callable[[str], None],
    ) -> None:
        self._options = options
        self._processor = processor
        self._store = store
        self._compute = compute
        self._disk = disk
        self._on_checkpoint = on_checkpoint
        self._at_stage = at_stage

    async def run(self, partitions: Mapping[int, OwnedPartition]) -> None:
        """Checkpoint each of the partitions once an interval, in turn: their work is spread.

        Of very many partitions each waits longer: transactions have a price, here and at Kafka.
        """
        turn = 0
        while True:
            pause_s = self._options.checkpoint_interval_s / max(1, len(partitions))
            await asyncio.sleep(max(pause_s, MIN_PAUSE_S))
            parts = list(partitions.values())
            if parts:
                turn = (turn + 1) % len(parts)
                self.begin(parts[turn])

    def begin(self, part: OwnedPartition) -> None:
        """Begin a checkpoint where something waits for one, or have one follow that under way."""
        part.is_due = True
        if part.has_work() and (part.task is None or part.task.done()):
            part.task = asyncio.ensure_future(self._checkpoint_while_due(part))

    async def _checkpoint_while_due(self, part: OwnedPartition) -> None:
        while part.is_due and not part.lost:
            part.is_due = False
            await self.checkpoint(part)

    async def checkpoint(self, part: OwnedPartition) -> None:
        """Make what was sent so far durable, then acknowledge it; a failure ends the process."""
        async with part.lock:
            if not part.has_work() or part.lost:
                return
            try:
                await self._checkpoint(part)
            except asyncio.CancelledError:
                part.lose()  # the outcome is not known: the next owner fences and reads again
                raise
            except BaseException as error:
                if part.lost:
                    return
                if not isinstance(error, KafkaError):
                    end_by(error, f"a checkpoint of partition {part.number}")
                end_process(
                    ExitCode.CHECKPOINT,
                    "checkpoint of partition %d failed: %r. Nothing is lost: %s, then start the "
                    "worker again.",
                    part.number,
                    error,
                    remedy(error),
                )

    async def _checkpoint(self, part: OwnedPartition) -> None:
        started_s = time.monotonic()
        loop = asyncio.get_running_loop()
        events, confirmations = part.events, part.confirmations
        part.events, part.confirmations, part.moved_rows = [], [], 0
        reflects = part.next_offset
        part.calm.set()
        snapshot, results = await loop.run_in_executor(self._compute, self._take, part)
        if part.withdrawn_after is not None:
            part.calm.set()  # who waits for this checkpoint has outputs that go before it
        position = None
        if snapshot.rows:
            outputs = [record for result in results for record in result.outputs]
            withdrawn = [(key, row) for key, row in snapshot.rows if row is None]
            if part.withdrawn_after is not None:
                await part.wait_to_withdraw()
                # In the topic, not only on their way: this goes by another producer.
                await asyncio.gather(*confirmations, *part.confirmations)
            position = await self.log_rows(part, snapshot.rows, [*outputs, *withdrawn])
            part.withdrawn_after = None
            part.turn.set()
            if position is not None and position <= part.position:
                end_process(
                    ExitCode.CHECKPOINT,
                    "changelog %s partition %d: rows were written up to offset %d, after offset "
                    "%d: it was made anew meanwhile. Nothing is lost: start the worker again, and "
                    "the local rows are published to it.",
                    self._options.changelog,
                    part.number,
                    position,
                    part.position,
                )
            part.position = part.position if position is None else position
            if results:
                self._processor.sent(results, time.time())
        await asyncio.gather(*confirmations)
        self._at_stage("committed")
        await loop.run_in_executor(self._disk, self._keep, part, snapshot, position, reflects)
        if snapshot.rows:
            self._compute.submit(self._processor.settled, part.number, snapshot)
        self._at_stage("written")
        for event in events:
            event.ack()
        self._at_stage("acknowledged")
        self._on_checkpoint(len(snapshot.rows), time.monotonic() - started_s)

    def _take(self, part: OwnedPartition) -> tuple[Snapshot, list[PartitionResult]]:
        """Take the rows that moved and the results that leave with them, in the compute thread."""
        results, part.unsent, part.unsent_outputs = part.unsent, [], 0
        snapshot = self._processor.snapshot(part.number)
        if not self._options.transactional and any(row is None for _, row in snapshot.rows):
            part.withdrawn_after = part.computed
        return snapshot, results

    def _keep(
        self, part: OwnedPartition, snapshot: Snapshot, position: int | None, reflects: int | None
    ) -> None:
        """Write rows, then up to where they reflect the source, in the disk thread."""
        if snapshot.rows:
            self._store.write(part.number, snapshot.rows, position)
        if reflects is not None:
            self._store.set_mark(part.number, Mark(part.mark, reflects).encode())

    async def fence(self, number: int) -> OwnedPartition:
        """Take the partition: from here on an older owner's writes are refused."""
        producer = AIOKafkaProducer(
            **self._options.kafka,
            transactional_id=f"{self._options.app_id}-{number}",
            transaction_timeout_ms=60_000,
            max_batch_size=MAX_BATCH_BYTES,
            compression_type=self._options.compression,
            retry_backoff_ms=20,  # also paces the initialisation
        )
        await start_client(producer)
        return OwnedPartition(number, producer)

    async def log_rows(
        self,
        part: OwnedPartition,
        rows: Sequence[tuple[bytes, bytes | None]],
        outputs: Sequence[tuple[bytes, bytes | None]] = (),
    ) -> int | None:
        """Write rows to the partition's changelog, and outputs beside them, in one transaction.

        Args:
            part: The partition; its former owners are fenced.
            rows: (key, row) pairs, at least one.
            outputs: (key, value) records for the output topic.

        Returns:
            The offset of the last row; None where a broker knew a batch already and did not say.

        Raises:
            aiokafka.errors.KafkaError: The broker refused some of it; nothing was committed.
        """
        await part.producer.begin_transaction()
        batches = await send_records(part.producer, self._options.changelog, part.number, rows)
        beside = await send_records(part.producer, self._options.output, part.number, outputs)
        # aiokafka commits what remains where the broker refused a batch.
        await asyncio.gather(*[future for future, _ in batches + beside])
        self._at_stage("rows-sent")
        await part.producer.commit_transaction()
        future, count = batches[-1]
        first = int((await future).offset)
        return first + count - 1 if first >= 0 else None
