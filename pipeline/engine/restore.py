"""What happens at an assignment: fence, read the changelog in bulk, seek, flow.

Replaces `faust.tables.recovery.Recovery`; changelogs never go through Faust's consumer. The order
is the point: sources are at their committed offsets with nothing in flight before anything flows; a
partition flows only when its former owner is fenced and its rows are there. Kept partitions flow at
once and keep their rows.
"""

import asyncio
import logging
import time
from collections.abc import Callable, Collection
from concurrent.futures import Executor
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition
from faust.tables.manager import TableManager as FaustTableManager
from mode import Service

from pipeline.engine.chunks import fetch_chunks
from pipeline.engine.options import EngineOptions
from pipeline.engine.partitions import OwnedPartition, stop_quietly
from pipeline.engine.stop import ExitCode, end_by, end_process
from state.store import StateStore

logger = logging.getLogger(__name__)

REPUBLISH_ROWS = 2000  # rows in one transaction
METADATA_DEADLINE_S = 10.0


class ChangelogReader:
    """Brings the rows of one partition up to the end of its changelog, or follows it.

    Args:
        options: Engine options.
        store: Where rows are kept.
        disk: The thread in which the store is used.
        newer: As `Processor.newer`.
        on_rows: Is told how many changelog records were applied.
    """

    def __init__(
        self,
        options: EngineOptions,
        store: StateStore,
        disk: Executor,
        newer: Callable[[list[bytes], list[bytes]], list[bool]],
        on_rows: Callable[[int], None],
    ) -> None:
        self._options = options
        self._store = store
        self._disk = disk
        self._newer = newer
        self._on_rows = on_rows

    async def read(self, partition: int, *, follow: bool = False) -> tuple[int, set[bytes] | None]:
        """Apply committed changelog records from the local position on.

        Args:
            partition: Its number; its store is opened.
            follow: Go on for ever (a standby) instead of returning at the end.

        Returns:
            How many records were applied; and, where the changelog no longer continues the local
            rows (trimmed, emptied or recreated), the keys of which it holds the newest row, so that
            the other local rows can be published again. None otherwise.
        """
        loop = asyncio.get_running_loop()
        await loop.run_in_executor(self._disk, self._store.open, partition)
        tp = TopicPartition(self._options.changelog, partition)
        consumer = AIOKafkaConsumer(
            **self._options.kafka,
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
            max_partition_fetch_bytes=4 << 20,
            fetch_max_wait_ms=200,
        )
        await consumer.start()
        try:
            consumer.assign([tp])
            begin = (await consumer.beginning_offsets([tp]))[tp]
            end = (await consumer.end_offsets([tp]))[
                tp
            ]  # of the committed part: the former owner is fenced
            position = await loop.run_in_executor(self._disk, self._store.position, partition)
            seen = self._continuation(partition, position, begin, end)
            at = begin if position is None or seen is not None else position + 1
            count = 0
            if at < end or follow:
                consumer.seek(tp, at)
            while at < end or follow:
                for chunk in (await fetch_chunks(consumer._fetcher, {tp}, 1.0, 1 << 30)).get(
                    tp, ()
                ):
                    rows = {record.key: record.value for record in chunk.records}
                    if seen is not None:
                        rows = await loop.run_in_executor(
                            self._disk, self._without_older, partition, rows
                        )
                        seen.update(rows)
                    await loop.run_in_executor(
                        self._disk,
                        self._store.write,
                        partition,
                        list(rows.items()),
                        chunk.next_offset - 1,
                    )
                    count += len(chunk)
                    self._on_rows(len(chunk))
                at = await consumer.position(tp)
            return count, seen
        finally:
            await consumer.stop()

    def _without_older(
        self, partition: int, rows: dict[bytes, bytes | None]
    ) -> dict[bytes, bytes | None]:
        """Leave out rows that are older than the local ones: the log may have lost its end."""
        local = self._store.get(partition, list(rows))
        both = [
            (key, mine, row)
            for (key, row), mine in zip(rows.items(), local, strict=True)
            if mine is not None and row is not None
        ]
        newer = self._newer([mine for _, mine, _ in both], [row for _, _, row in both])
        kept = {key for (key, _, _), is_newer in zip(both, newer, strict=True) if is_newer}
        return {key: row for key, row in rows.items() if key not in kept}

    def _continuation(
        self, partition: int, position: int | None, begin: int, end: int
    ) -> set[bytes] | None:
        """Return an empty set, and log why, where changelog and local rows do not meet."""
        if position is None:
            return None
        if position >= end:
            logger.warning(
                "changelog %s partition %d ends at %d but the local rows reflect offset %d: the "
                "topic was emptied or "
                "recreated; local rows that it lacks are published again",
                self._options.changelog,
                partition,
                end,
                position,
            )
            return set()
        if begin > position + 1:
            logger.warning(
                "changelog %s partition %d starts at %d but the local rows reflect offset %d: it "
                "was trimmed; local rows "
                "that it lacks are published again",
                self._options.changelog,
                partition,
                begin,
                position,
            )
            return set()
        return None


class Restore(Service):
    """Carries out each assignment; Faust calls it where it would call its own recovery."""

    def __init__(self, app: Any, tables: Any, **kwargs: Any) -> None:
        self.app, self.tables = app, tables
        self.completed = asyncio.Event()
        self.in_recovery = False  # asked by Faust's consumer
        self._generation: int | None = None
        self._job: asyncio.Future[None] | None = None
        self._standbys: list[asyncio.Future[Any]] = []
        super().__init__(**kwargs)

    def on_partitions_revoked(self, revoked: set[Any]) -> None:
        """Stop a restore that is under way: its partitions may be gone."""
        if self._job is not None:
            self._job.cancel()

    async def on_rebalance(
        self,
        assigned: set[Any],
        revoked: set[Any],
        newly_assigned: set[Any],
        generation_id: int = 0,
    ) -> None:
        """Begin the restore of an assignment; the group does not wait for it."""
        if self._job is not None:
            self._job.cancel()
            await asyncio.wait([self._job])
        if generation_id == self.app.consumer_generation_id:
            self._job = self.add_future(self._guarded(set(assigned), generation_id))

    async def _guarded(self, assigned: set[Any], generation: int) -> None:
        try:
            await self._take_assignment(assigned, generation)
        except asyncio.CancelledError:
            raise
        except BaseException as error:
            end_by(error, "restoring the assigned partitions")

    async def _take_assignment(self, assigned: set[Any], generation: int) -> None:
        app, stream, consumer = self.app, self.app.stream_service, self.app.consumer
        started_s = time.monotonic()
        sources = {tp.partition: tp for tp in assigned if not consumer._is_changelog_tp(tp)}
        await self._require_partitions(sources)
        await self._stop_standbys()
        if not stream.started:
            await self.add_runtime_dependency(stream)
        # What is being fetched belongs to positions that are about to change.
        while consumer.fetching:
            await asyncio.sleep(0.002)
        await consumer._thread.call_thread(self._pause_changelogs)
        await consumer.perform_seek()
        # Kept: the same member in the very next generation; nobody else can have owned the
        # partition in between. Faust's own `newly_assigned` is a set difference, by which a
        # returning zombie looks unchanged.
        if generation == self._generation and app.conf.consumer_group_instance_id:
            end_process(
                ExitCode.NAME_TAKEN,
                "another worker runs under the name %s (kafka.group-instance-id) and takes the "
                "partitions over: give each its own name, then start the worker again. Nothing is "
                "lost.",
                app.conf.consumer_group_instance_id,
            )
        consecutive = self._generation is not None and generation == self._generation + 1
        kept = {number for number in sources if consecutive and stream.is_usable(number)}
        self._generation = generation
        await stream.keep_only(kept)
        stream.open()
        app.flow_control.resume()
        consumer.resume_flow()
        consumer.resume_partitions({sources[number] for number in kept})
        await app._fetcher.maybe_start()
        app.on_rebalance_end()
        flowing_s = time.monotonic()
        gained = sorted(set(sources) - kept)
        counts = await asyncio.gather(
            *[self._restore(number, sources[number]) for number in gained]
        )
        self.completed.set()
        self.tables.on_actives_ready()
        self.tables.on_standbys_ready()
        await app.on_rebalance_complete.send()
        logger.info(
            "generation %d: kept partitions %s flow after %.2f s, gained %s after %.2f s (%d "
            "changelog records)",
            generation,
            sorted(kept),
            flowing_s - started_s,
            gained,
            time.monotonic() - started_s,
            sum(counts),
        )
        app.on_assignment(set(sources), time.monotonic() - started_s)
        self._start_standbys(assigned, set(sources))

    async def _require_partitions(self, assigned: Collection[int]) -> None:
        """End the process where the source is gone or got other partitions meanwhile.

        A broker that just started may know fewer partitions than there are for a moment.
        """
        source, expected = self.app.engine_options.source, self.app.conf.topic_partitions
        deadline_s = time.monotonic() + METADATA_DEADLINE_S
        while True:
            known = self.app.consumer.topic_partitions(source) or 0
            got = max([known, *[number + 1 for number in assigned]])
            if got == expected:
                return
            if got > expected or time.monotonic() > deadline_s:
                break
            await asyncio.sleep(0.1)
        end_process(
            ExitCode.TOPICS,
            "topic %s: partitions: expected %d, as when the worker started, got %d: it was "
            "changed or deleted meanwhile. Everything answered is safe; see what to do with: "
            "lrurec topics check",
            source,
            expected,
            got,
        )

    async def _pause_changelogs(self) -> None:
        consumer = self.app.consumer._thread._ensure_consumer()
        tps = [tp for tp in consumer.assignment() if tp.topic in self.tables.changelog_topics]
        if tps:
            consumer.pause(*tps)

    def _reader(self) -> ChangelogReader:
        stream = self.app.stream_service
        return ChangelogReader(
            stream.options,
            stream.store,
            stream.disk,
            stream.processor.newer,
            self.app.on_restored_rows,
        )

    async def _restore(self, number: int, tp: Any) -> int:
        stream = self.app.stream_service
        deadline_s = stream.options.restore_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                # Before the end of the changelog is read.
                part = await stream.checkpointer.fence(number)
                try:
                    count, seen = await self._reader().read(number)
                    if seen is not None:
                        await self._publish_missing(part, seen)
                except BaseException:  # a rebalance cancels this; its producer would stay
                    await stop_quietly(part.producer)
                    raise
        except TimeoutError:
            end_process(
                ExitCode.RESTORE,
                "partition %d was not restored within %.0f s (worker.restore-deadline-s); "
                "nothing was acknowledged",
                number,
                deadline_s,
            )
        stream.add(part)
        self.app.consumer.resume_partitions({tp})
        return count

    async def _publish_missing(self, part: OwnedPartition, seen: set[bytes]) -> None:
        """Publish local rows that the changelog lacks: a wiped disk would otherwise lose them.

        A damaged one is not spread; it ends the worker when its user comes.
        """
        stream = self.app.stream_service
        loop = asyncio.get_running_loop()
        rows = await loop.run_in_executor(
            stream.disk,
            lambda: [(key, row) for key, row in stream.store.scan(part.number) if key not in seen],
        )
        for first in range(0, len(rows), REPUBLISH_ROWS):
            some = rows[first : first + REPUBLISH_ROWS]
            intact = stream.processor.newer([row for _, row in some], [b""] * len(some))
            some = [pair for pair, is_intact in zip(some, intact, strict=True) if is_intact]
            if not some:
                continue
            position = await stream.checkpointer.log_rows(part, some)
            await loop.run_in_executor(stream.disk, stream.store.write, part.number, some, position)
        logger.warning(
            "partition %d: %d local rows published to the changelog again", part.number, len(rows)
        )

    def _start_standbys(self, assigned: set[Any], sources: set[int]) -> None:
        reader = self._reader()
        for tp in assigned:
            if tp.topic in self.tables.changelog_topics and tp.partition not in sources:
                self._standbys.append(self.add_future(reader.read(tp.partition, follow=True)))

    async def _stop_standbys(self) -> None:
        tasks, self._standbys = self._standbys, []
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)


class TableManager(FaustTableManager):
    """Faust's table manager with our restore."""

    _restore: Restore | None = None

    @property
    def recovery(self) -> Restore:
        """The service that carries out assignments."""
        if self._restore is None:
            self._restore = Restore(self.app, self, beacon=self.beacon, loop=self.loop)
            self._recovery = self._restore  # where stock looks for it when it stops
        return self._restore

    async def on_start(self) -> None:
        """Start at once; stock sleeps a second first."""
        await self._update_channels()
        await self.recovery.start()
