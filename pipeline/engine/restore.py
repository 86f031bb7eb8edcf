"""What happens at an assignment: fence, read the changelog in bulk, seek, flow.

Replaces `faust.tables.recovery.Recovery`; changelogs never go through Faust's consumer. The order
is the point: sources are at their committed offsets with nothing in flight before anything flows; a
partition flows only when its former owner is fenced and its rows are there. Kept partitions flow at
once and keep their rows. A standby's rows follow the changelog, so that little is left to read when
it gets the partition.
"""

import asyncio
import itertools
import logging
import time
from collections.abc import Collection
from typing import Any

from faust.tables.manager import TableManager as FaustTableManager
from mode import Service

from pipeline.engine.changelog_reader import ChangelogReader, LogChanged
from pipeline.engine.clients import stop_quietly
from pipeline.engine.marks import names, where_to_go_on
from pipeline.engine.partitions import OwnedPartition
from pipeline.engine.positions import go_on_from_the_start
from pipeline.engine.reading import Reading
from pipeline.engine.service_log import SERVICE_LOG
from pipeline.engine.stop import ExitCode, end_process, ending_on_error
from pipeline.errors import BrokerRefuses, BrokerUnavailable

logger = logging.getLogger(__name__)

REPUBLISH_ROWS = 2000  # rows in one transaction
METADATA_DEADLINE_S = 10.0
OBSERVE_S = 0.5
LOG_ID_PAUSE_S = 1.0
PROGRESS_S = 2.0  # time between two lines of the log


class Restore(Service):
    """Carries out each assignment; Faust calls it where it would call its own recovery."""

    logger = SERVICE_LOG

    def __init__(self, app: Any, tables: Any, **kwargs: Any) -> None:
        self.app, self.tables = app, tables
        self.completed = asyncio.Event()
        self._generation: int | None = None
        self._job: asyncio.Future[None] | None = None
        self._stream_start: asyncio.Future[Any] | None = None
        self._standbys: dict[int, asyncio.Future[Any]] = {}
        stream = app.stream_service
        self._reader = ChangelogReader(
            stream.options,
            app.conf.topic_partitions,
            stream.store,
            stream.disk,
            stream.processor.newer,
            app.on_restored_rows,
        )
        super().__init__(**kwargs)

    async def on_stop(self) -> None:
        """Read no further; the stores may be closed then."""
        if self._job is not None:
            self._job.cancel()
            await asyncio.wait([self._job])
        if self._stream_start is not None:
            self._stream_start.cancel()
            await asyncio.gather(self._stream_start, return_exceptions=True)
        await self._stop_standbys(set(self._standbys))
        await self._reader.stop()

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
        with ending_on_error("restoring the assigned partitions"):
            await self._take_assignment(assigned, generation)

    async def _take_assignment(self, assigned: set[Any], generation: int) -> None:
        app, stream, consumer = self.app, self.app.stream_service, self.app.consumer
        started_s = time.monotonic()
        sources = {tp.partition: tp for tp in assigned if not consumer._is_changelog_tp(tp)}
        await self._require_partitions(sources)
        changelogs = {tp.partition for tp in assigned if consumer._is_changelog_tp(tp)}
        standbys = changelogs - set(sources)
        await self._stop_standbys(set(self._standbys) - standbys)
        await self._start_stream()
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
        await self._close_stores(set(sources) | standbys)
        log_id = await self._ask_log_id() if gained or standbys else b""
        restores = [self._restore(number, sources[number], log_id) for number in gained]
        for number in standbys - set(self._standbys):
            self._standbys[number] = self.add_future(self._stand_by(number, log_id))
        app.on_joined()
        counts = await asyncio.gather(*restores)
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

    async def _start_stream(self) -> None:
        """Start the stream service, once; a rebalance meanwhile does not leave it half started."""
        if self._stream_start is None:
            start = self.add_runtime_dependency(self.app.stream_service)
            self._stream_start = asyncio.ensure_future(start)
        await asyncio.shield(self._stream_start)

    async def _require_partitions(self, assigned: Collection[int]) -> None:
        """End the process where the source is gone or got other partitions meanwhile.

        A broker that just started may know fewer partitions than there are for a moment.
        """
        source, expected = self.app.engine_options.source, self.app.conf.topic_partitions
        deadline_s = time.monotonic() + METADATA_DEADLINE_S
        while True:
            # Not Faust's `topic_partitions`: that is what the group's leader noted, and a member
            # that never led has no notes.
            cluster = self.app.consumer._thread._ensure_consumer()._client.cluster
            known = len(cluster.partitions_for_topic(source) or ())
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

    async def _ask_log_id(self) -> bytes:
        # A topic that was made anew has another id, however long it is by now.
        deadline_s = time.monotonic() + self.app.engine_options.restore_deadline_s
        while True:
            try:
                return await asyncio.to_thread(self.app.changelog_id)
            except BrokerUnavailable as error:
                if isinstance(error, BrokerRefuses) or time.monotonic() > deadline_s:
                    end_process(ExitCode.KAFKA, "asking for the changelog: %s; start again", error)
                logger.warning("asking for the changelog: %s; trying again", error)
            await asyncio.sleep(LOG_ID_PAUSE_S)

    async def _close_stores(self, wanted: set[int]) -> None:
        """Close what a restore or a standby left open that belongs to this worker no more."""
        stream = self.app.stream_service
        loop = asyncio.get_running_loop()
        for number in await loop.run_in_executor(stream.disk, stream.store.partitions):
            if number not in wanted:
                await loop.run_in_executor(stream.disk, stream.store.close, number)

    async def _restore(self, number: int, tp: Any, log_id: bytes) -> int:
        stream = self.app.stream_service
        self.app.consumer.notes.pop(tp, None)
        deadline_s = stream.options.restore_deadline_s
        try:
            async with asyncio.timeout(deadline_s):
                # Before the end of the changelog is read.
                part = await stream.checkpointer.fence(number)
                try:
                    count = await self._read(part, tp, log_id)
                except BaseException:  # a rebalance cancels this; its producer would stay
                    await stop_quietly(part.producer)
                    raise
        except TimeoutError:
            end_process(
                ExitCode.RESTORE,
                "partition %d was not restored within %g s (worker.restore-deadline-s); "
                "nothing was acknowledged",
                number,
                deadline_s,
            )
        stream.add(part)
        self.app.consumer.resume_partitions({tp})
        return count

    async def _read(self, part: OwnedPartition, tp: Any, log_id: bytes) -> int:
        consumer = self.app.consumer
        while True:
            reading = await self._reader.begin(part.number, log_id)
            try:
                await self._reader.catch_up(reading)
                reflects = await self._where_to_go_on(reading, tp)
                if reading.broken:
                    await self._publish_missing(part, reading.seen)
                part.mark = consumer.notes[tp] = reading.mark
                await self._reader.settle(reading, reflects)
                if not names(consumer.found_notes.get(tp, b""), reading.mark):
                    await consumer.commit_and_seek(tp, reflects)
                return reading.applied
            except LogChanged as error:
                logger.warning("%s: it is read again", error)
                log_id = await self._ask_log_id()
            finally:
                self._reader.drop(reading)

    async def _where_to_go_on(self, reading: Reading, tp: Any) -> int:
        """Return the source offset to read from: what local rows and changelog lack is read again.

        A commit names the changelog that holds the states up to there; none is named where a tool
        or an earlier version made it. The process ends where what is to be read is gone: another
        folder may still have it.
        """
        consumer = self.app.consumer
        committed, note = consumer.restarted_at[tp], consumer.found_notes.get(tp, b"")
        if names(note, reading.mark):
            return int(committed)
        beginning = await consumer.beginning(tp)
        found = where_to_go_on(committed, reading.reflects, beginning)
        if found is None:
            end_process(
                ExitCode.HOLE,
                "partition %d: the group has read up to offset %d, the rows of this data folder "
                "reflect %s, the changelog was made anew or trimmed and does not have the rest, "
                "and the topic now starts at %d. Start the worker first that had the partition "
                "last: its folder has it all. To go on without what is lost, %s",
                reading.partition,
                committed,
                "nobody knows what" if reading.reflects is None else f"it to {reading.reflects}",
                beginning,
                go_on_from_the_start(consumer._thread._ensure_consumer(), tp),
            )
        if found < committed:
            logger.warning(
                "partition %d: the group has read up to offset %d, but the changelog was made anew "
                "or trimmed, and the rows of this data folder reflect it up to %d: the rest is "
                "read again",
                reading.partition,
                committed,
                found,
            )
        return found

    async def _stand_by(self, number: int, log_id: bytes) -> None:
        """Follow the changelog of a partition that another worker owns, until cancelled."""
        with ending_on_error(f"following the changelog of partition {number}"):
            while True:
                reading = await self._reader.begin(number, log_id, follow=True)
                try:
                    await self._reader.catch_up(reading)
                    logger.info(
                        "partition %d: a standby from here on (%d changelog records read)",
                        number,
                        reading.applied,
                    )
                    await reading.failed
                except LogChanged as error:
                    logger.warning("%s: it is read again", error)
                    log_id = await self._ask_log_id()
                finally:
                    self._reader.drop(reading)

    async def _stop_standbys(self, numbers: set[int]) -> None:
        tasks = [self._standbys.pop(number) for number in numbers]
        for task in tasks:
            task.cancel()
        if tasks:
            await asyncio.wait(tasks)

    @Service.task
    async def _observe(self) -> None:
        """Tell how far restores and standbys are, in figures and now and then in the log."""
        begun_s = said_s = time.monotonic()
        while not self.should_stop:
            await asyncio.sleep(OBSERVE_S)
            readings = self._reader.readings()
            restoring = [reading for reading in readings if not reading.follow]
            self.app.on_restore_progress(
                {reading.partition: reading.left for reading in restoring},
                {r.partition: self._reader.behind(r) for r in readings if r.follow},
            )
            now_s = time.monotonic()
            if not restoring:
                begun_s = said_s = now_s
            elif now_s - said_s >= PROGRESS_S:
                said_s = now_s
                _log_progress(restoring, now_s - begun_s)

    async def _publish_missing(self, part: OwnedPartition, seen: set[bytes]) -> None:
        """Publish local rows that the changelog lacks: a wiped disk would otherwise lose them.

        A damaged one is not spread; it ends the worker when its user comes.
        """
        stream = self.app.stream_service
        loop = asyncio.get_running_loop()
        missing = (pair for pair in stream.store.scan(part.number) if pair[0] not in seen)
        published = 0
        while some := await loop.run_in_executor(
            stream.disk, lambda: list(itertools.islice(missing, REPUBLISH_ROWS))
        ):
            intact = stream.processor.newer([row for _, row in some], [b""] * len(some))
            some = [pair for pair, is_intact in zip(some, intact, strict=True) if is_intact]
            if not some:
                continue
            position = await stream.checkpointer.log_rows(part, some)
            await loop.run_in_executor(stream.disk, stream.store.write, part.number, some, position)
            published += len(some)
        logger.warning(
            "partition %d: %d local rows published to the changelog again", part.number, published
        )


def _log_progress(restoring: list[Reading], elapsed_s: float) -> None:
    done = sum(reading.applied for reading in restoring)
    left = sum(reading.left for reading in restoring)
    per_s = done / elapsed_s
    logger.info(
        "restoring partitions %s: %d records read, at most %d left, %.0f records/s, about %.0f s "
        "to go",
        sorted(reading.partition for reading in restoring),
        done,
        left,
        per_s,
        left / max(per_s, 1.0),
    )


class TableManager(FaustTableManager):
    """Faust's table manager with our restore."""

    logger = SERVICE_LOG
    _recovery: Restore | None = None

    @property
    def recovery(self) -> Restore:
        """The service that carries out assignments."""
        if self._recovery is None:
            self._recovery = Restore(self.app, self, beacon=self.beacon, loop=self.loop)
        return self._recovery

    async def on_start(self) -> None:
        """Start at once; stock sleeps a second first."""
        await self._update_channels()
        await self.recovery.start()
