"""One connection that brings any number of partitions of the changelog into the store.

A restore reads a partition from the local position to the end that the changelog had when it began;
a standby goes on from there for ever. Rows are fetched and decoded in the event loop while those
before them are written in the disk thread. Restores go first: while one is under way, standbys
wait.
"""

import asyncio
import logging
from collections.abc import Callable, Iterable
from concurrent.futures import Executor
from typing import Any

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from pipeline.engine.chunks import Chunk, fetch_chunks
from pipeline.engine.clients import start_client
from pipeline.engine.marks import Mark
from pipeline.engine.options import EngineOptions
from pipeline.engine.reading import Reading
from state.errors import StateFormatUnknown
from state.store import StateStore

logger = logging.getLogger(__name__)

FETCH_BYTES = 16 << 20  # of all partitions in one answer: rows in work stay a few times this
PARTITION_FETCH_BYTES = 4 << 20  # also the size of a write
FETCH_MAX_WAIT_MS = 200
# Fewer rows than this are logged like any others: making a table file of them costs more.
BULK_ROWS = 5000
CHUNKS_AHEAD = 4  # that wait for the disk while the next ones are fetched


class LogChanged(Exception):
    """The changelog no longer continues what was read of it: it was cut or made anew meanwhile."""


class ChangelogReader:
    """Reads partitions of the changelog into the store, all of them by one consumer.

    Args:
        options: Engine options.
        partitions: How many the changelog has.
        store: Where rows are kept.
        disk: The thread in which the store is used.
        newer: As `Processor.newer`.
        on_rows: Is told, for each write, whether it was a standby's and how many records.
    """

    def __init__(
        self,
        options: EngineOptions,
        partitions: int,
        store: StateStore,
        disk: Executor,
        newer: Callable[[list[bytes], list[bytes]], list[bool]],
        on_rows: Callable[[bool, int], None],
    ) -> None:
        self._options = options
        self._tps = [TopicPartition(options.changelog, number) for number in range(partitions)]
        self._store = store
        self._disk = disk
        self._newer = newer
        self._on_rows = on_rows
        self._consumer: AIOKafkaConsumer | None = None
        self._starting = asyncio.Lock()
        self._tasks: list[asyncio.Task[None]] = []
        self._chunks: asyncio.Queue[tuple[Reading, Chunk]] = asyncio.Queue(CHUNKS_AHEAD)
        self._readings: dict[int, Reading] = {}

    # --- what callers use

    async def begin(self, partition: int, log_id: bytes, *, follow: bool = False) -> Reading:
        """Begin to read a partition from its local position on; its store is opened.

        Args:
            partition: Its number.
            log_id: Names the changelog, without spaces. Local rows that were read from another one
                do not meet it, whatever their position.
            follow: Go on for ever behind the end.
        """
        consumer = await self._running_consumer()
        tp = self._tps[partition]
        begin = (await consumer.beginning_offsets([tp]))[tp]
        # Of the committed part: the former owner is fenced.
        end = (await consumer.end_offsets([tp]))[tp]
        # Compaction moves no beginning, so another one means that rows are gone.
        mark = log_id + b" %d" % begin
        position, found = await self._in_disk(self._open, partition, mark)
        broken = False
        if position is not None:
            broken = self._is_break(partition, position, begin, end, found.log, mark)
        if broken:
            # Whatever becomes of this reading, the next one has to begin anew, too, until `settle`.
            unread = Mark(None, found.reflects).encode()
            await self._in_disk(self._store.set_mark, partition, unread)
        at = begin if position is None or broken else position + 1
        reading = Reading(
            partition=partition,
            mark=mark,
            reflects=found.reflects,
            next_offset=at,
            end=end,
            follow=follow,
            broken=broken,
            in_bulk=end - at > BULK_ROWS,
            written_to=at,
        )
        if at >= end:
            reading.caught_up.set()
        if at < end or follow:
            self._readings[partition] = reading
            consumer.seek(tp, at)
            self._steer()
        return reading

    async def catch_up(self, reading: Reading) -> None:
        """Wait until all is written that the changelog held when the reading began.

        Raises:
            LogChanged: The changelog was cut or made anew meanwhile.
            aiokafka.errors.KafkaError: Kafka refuses, or a record is damaged.
            state.errors.StateError: The store cannot be written.
        """
        waiting = asyncio.ensure_future(reading.caught_up.wait())
        either: list[asyncio.Future[Any]] = [waiting, reading.failed]
        try:
            await asyncio.wait(either, return_when=asyncio.FIRST_COMPLETED)
        finally:
            waiting.cancel()
        if reading.failed.done():
            reading.failed.result()

    async def settle(self, reading: Reading, reflects: int | None = None) -> None:
        """Note that the changelog has all local rows and the store all of the changelog's.

        Args:
            reading: One that caught up.
            reflects: Every source offset below it is reflected by these rows; None: not known.
        """
        # Logged: what was written in bulk lies in table files before it.
        mark = Mark(reading.mark, reflects).encode()
        await self._in_disk(self._store.set_mark, reading.partition, mark)

    def drop(self, reading: Reading) -> None:
        """Read it no further; what the disk thread is given from here on comes behind its rows."""
        reading.dropped = True
        if self._readings.get(reading.partition) is reading:
            del self._readings[reading.partition]
            self._steer()

    def readings(self) -> list[Reading]:
        """Return what is being read now, standbys too."""
        return list(self._readings.values())

    def behind(self, reading: Reading) -> int:
        """Return how many offsets of the changelog, as of the last fetch, a standby lacks."""
        assert self._consumer is not None
        end = self._consumer.last_stable_offset(self._tps[reading.partition])
        return max(reading.end, end or 0) - reading.written_to

    async def stop(self) -> None:
        """End the connection; nothing is written after this returns."""
        for reading in self.readings():
            self.drop(reading)
        for task in self._tasks:
            task.cancel()
        if self._tasks:
            await asyncio.wait(self._tasks)
        if self._consumer is not None:
            await self._consumer.stop()
            await self._in_disk(lambda: None)  # behind every write

    # --- the connection

    async def _running_consumer(self) -> AIOKafkaConsumer:
        async with self._starting:
            if self._consumer is None:
                consumer = AIOKafkaConsumer(
                    **self._options.kafka,
                    group_id=None,
                    isolation_level="read_committed",
                    enable_auto_commit=False,
                    auto_offset_reset="earliest",
                    fetch_max_bytes=FETCH_BYTES,
                    max_partition_fetch_bytes=PARTITION_FETCH_BYTES,
                    fetch_max_wait_ms=FETCH_MAX_WAIT_MS,
                )
                await start_client(consumer)
                # All of them once and for ever, and paused: an assignment that changes would throw
                # away what is on its way for the others.
                consumer.assign(self._tps)
                consumer.pause(*self._tps)
                for tp in self._tps:
                    consumer.seek(tp, 0)  # else their beginnings would be asked for
                self._consumer = consumer
                self._tasks = [
                    asyncio.create_task(self._fetch_for_ever()),
                    asyncio.create_task(self._write_for_ever()),
                ]
        return self._consumer

    def _steer(self) -> None:
        """Fetch restores, and standbys only where nobody waits for a restore."""
        assert self._consumer is not None
        restoring = any(not reading.follow for reading in self._readings.values())
        for tp in self._tps:
            reading = self._readings.get(tp.partition)
            if (
                reading is not None
                and not reading.failed.done()
                and (not (reading.follow and restoring))
                and (reading.follow or reading.next_offset < reading.end)
            ):
                self._consumer.resume(tp)
            else:
                self._consumer.pause(tp)

    async def _fetch_for_ever(self) -> None:
        assert self._consumer is not None
        while True:
            try:
                taken = await fetch_chunks(self._consumer._fetcher, self._tps, 1.0, 1 << 30)
                accepted = [  # all at once: while one is put, another reading may begin
                    (reading, chunk)
                    for tp, chunks in taken.items()
                    for chunk in chunks
                    if (reading := self._accept(tp, chunk)) is not None
                ]
                for reading_and_chunk in accepted:
                    await self._chunks.put(reading_and_chunk)
            except Exception as error:  # whoever waits for a partition is told
                for reading in self.readings():
                    reading.fail(error)
                self._steer()

    def _accept(self, tp: TopicPartition, chunk: Chunk) -> Reading | None:
        """Return whose chunk this is, if it continues what was fetched before."""
        reading = self._readings.get(tp.partition)
        if reading is None or reading.failed.done():
            return None
        if chunk.start != reading.next_offset:  # aiokafka begins anew where offsets are gone
            msg = (
                f"changelog {tp.topic} partition {tp.partition}: expected offset "
                f"{reading.next_offset}, got {chunk.start}: it was cut or made anew meanwhile"
            )
            reading.fail(LogChanged(msg))
            self._steer()
            return None
        reading.next_offset = chunk.next_offset
        if chunk.next_offset >= reading.end:
            self._steer()
        return reading

    async def _write_for_ever(self) -> None:
        while True:
            reading, chunk = await self._chunks.get()
            if reading.dropped or reading.failed.done():
                continue
            try:
                await self._in_disk(self._apply, reading, chunk)
                self._on_rows(reading.follow, len(chunk))
            except Exception as error:
                reading.fail(error)
                self._steer()
                continue
            reading.applied += len(chunk)
            reading.written_to = chunk.next_offset
            if reading.left == 0:
                reading.caught_up.set()
                if not reading.follow:
                    self.drop(reading)

    # --- in the disk thread

    async def _in_disk(self, function: Callable[..., Any], *args: Any) -> Any:
        return await asyncio.get_running_loop().run_in_executor(self._disk, function, *args)

    def _open(self, partition: int, mark: bytes) -> tuple[int | None, Mark]:
        """Open a partition's store; its position, and the mark of what it was read from."""
        self._store.open(partition)
        position = self._store.position(partition)
        if position is None:  # before the first row, so that what a crash leaves is known
            self._store.set_mark(partition, mark)
        return position, Mark.decode(self._store.mark(partition))

    def _apply(self, reading: Reading, chunk: Chunk) -> None:
        if reading.dropped:
            return
        # The last row of a key counts; the older ones need not be written.
        rows = {record.key: record.value for record in chunk.records}
        if reading.broken:
            rows = self._without_older(reading, chunk, rows)
            if reading.lacking is None:
                reading.seen.update(rows)
        forgettable = reading.in_bulk and chunk.start < reading.end
        position = chunk.next_offset - 1
        self._store.write(reading.partition, rows.items(), position, logged=not forgettable)
        if reading.broken and reading.follow and chunk.next_offset >= reading.end:
            self._settle_standby(reading, rows)

    def _settle_standby(self, reading: Reading, rows: Iterable[bytes]) -> None:
        """Settle a broken standby once the changelog has all of its rows.

        It may not publish those that are lacking, but their owner may write them.
        """
        if reading.lacking is None:
            scan = self._store.scan(reading.partition)
            reading.lacking = {key for key, _ in scan if key not in reading.seen}
            reading.seen = set()
            if reading.lacking:
                logger.warning(
                    "partition %d: the changelog lacks %d rows of this standby. If it gets the "
                    "partition before they are written, it reads everything again and publishes "
                    "them",
                    reading.partition,
                    len(reading.lacking),
                )
        reading.lacking.difference_update(rows)
        if not reading.lacking:
            mark = Mark(reading.mark, reading.reflects).encode()
            self._store.set_mark(reading.partition, mark)
            reading.broken = False
            logger.info("partition %d: changelog and standby agree again", reading.partition)

    def _without_older(
        self, reading: Reading, chunk: Chunk, rows: dict[bytes, bytes | None]
    ) -> dict[bytes, bytes | None]:
        """Leave out rows that are older than the local ones: the log may have lost its end.

        A tombstone is as old as the row that it deletes. Where this log does not tell of a row as
        new as the local one, that may have come after it.
        """
        deleted = {r.key: r.value for r in chunk.records if r.value is not None}
        local = self._store.get(reading.partition, list(rows))
        both = []
        for (key, row), mine in zip(rows.items(), local, strict=True):
            other = deleted.get(key, b"") if row is None else row
            is_of_this_log = reading.lacking is not None or key in reading.seen
            if mine is not None and not (other == b"" and is_of_this_log):
                both.append((key, mine, other))
        try:
            newer = self._newer([mine for _, mine, _ in both], [row for _, _, row in both])
        except StateFormatUnknown as error:
            raise error.at(reading.partition, [key for key, _, _ in both]) from error
        kept = {key for (key, _, _), is_newer in zip(both, newer, strict=True) if is_newer}
        return {key: row for key, row in rows.items() if key not in kept}

    def _is_break(
        self,
        partition: int,
        position: int,
        begin: int,
        end: int,
        found: bytes | None,
        mark: bytes,
    ) -> bool:
        """Tell, and log why, where changelog and local rows do not meet."""
        if position >= end:
            what = f"ends at {end}: it was emptied or made anew"
        elif found is None:
            what = "was never read through"
        elif found.split()[:-1] != mark.split()[:-1]:
            what = "is another one than they were read from: it was made anew"
        elif found != mark:
            what = f"starts at {begin}: it was trimmed"
        else:
            return False
        logger.warning(
            "partition %d: the local rows reflect offset %d of changelog %s, which %s. It is read "
            "from its beginning, local rows that it lacks are kept",
            partition,
            position,
            self._options.changelog,
            what,
        )
        return True
