"""Stock Faust apps and engine apps side by side, for tests of what the engine works around.

Both run in the calling process on a real Kafka. What ends its process has to be watched from
outside: `python -m tests.faust_apps WHO --settings...` runs an app that fails.
"""

import asyncio
import dataclasses
import functools
import gc
import sys
import tempfile
import threading
import warnings
from collections.abc import AsyncIterator, Callable, Collection, Coroutine, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import faust
from faust.transport.drivers import aiokafka as driver
from faust.types import TP
from kafka.structs import TopicPartition

from pipeline.engine.app import RAW, EngineApp, create_engine_app
from pipeline.engine.chunks import Chunk
from pipeline.engine.processor import PartitionResult, Snapshot
from pipeline.engine.transport import ChunkMessage, Consumer
from pipeline.settings import Settings
from pipeline.worker.app import engine_options
from state.memory import MemoryStore
from tests.kafka import admin_client, send

NEVER_S = 3600.0


def in_loop(test: Callable[..., Coroutine[Any, Any, None]]) -> Callable[..., None]:
    """Let a test be a coroutine; what apps leave unclosed when they stop is no error in it.

    Stock leaves loops and sockets of its threads; the engine what the end of its process closes.
    """

    @functools.wraps(test)
    def run(*arguments: Any, **fixtures: Any) -> None:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore", ResourceWarning)
            asyncio.run(test(*arguments, **fixtures))
            gc.collect()

    return run


class OffsetProcessor:
    """Notes each record's offset; a record moves the row of its key, and is answered by its value.

    Attributes:
        seen: (partition, offset) of every record, in order.
        fails: Raise on the next records.
        begun: Set when there are records in work.
    """

    def __init__(self, *, fails: bool = False) -> None:
        self.seen: list[tuple[int, int]] = []
        self.fails = fails
        self.begun = threading.Event()
        self._rows: dict[int, dict[bytes, bytes | None]] = {}

    def process(self, chunks: Sequence[tuple[int, Chunk]]) -> list[PartitionResult]:
        if self.fails:
            msg = "told to fail"
            raise RuntimeError(msg)
        self.begun.set()
        results: dict[int, PartitionResult] = {}
        for number, chunk in chunks:
            result = results.setdefault(number, PartitionResult(number, []))
            for record in chunk.records:
                self.seen.append((number, record.offset))
                self._rows.setdefault(number, {})[record.key] = record.value
                result.outputs.append((record.key, record.value))
        return list(results.values())

    def refresh(self, owned: Collection[int]) -> Mapping[int, int]:
        """Nothing changes elsewhere."""
        return {}

    def snapshot(self, partition: int) -> Snapshot:
        return Snapshot(rows=list(self._rows.pop(partition, {}).items()))

    def settled(self, partition: int, snapshot: Snapshot) -> None:
        """Nothing is held."""

    def forget(self, partition: int) -> None:
        self._rows.pop(partition, None)

    def newer(self, rows: Sequence[bytes], than: Sequence[bytes]) -> list[bool]:
        return [False] * len(rows)

    def sent(self, results: Sequence[PartitionResult], now_s: float) -> None:
        """Nothing is measured."""


def stock_app(settings: Settings, agent: Callable[[Any], Any], **more: Any) -> faust.App:
    """A stock Faust app with one agent on the interactions; nothing connects yet."""
    options: dict[str, Any] = {
        "store": "memory://",
        "topic_allow_declare": False,
        "topic_disable_leader": True,
        "topic_partitions": settings.topics.partitions,
        "consumer_auto_offset_reset": "earliest",
        "stream_wait_empty": True,
        "web_enabled": False,
        "datadir": tempfile.mkdtemp(prefix="stock-faust-"),
    }
    app = faust.App(
        settings.worker.app_id,
        broker=f"kafka://{settings.kafka.bootstrap_servers}",
        **options | more,
    )
    app.agent(app.topic(settings.topics.interactions, **RAW))(agent)
    return app


def engine_app(settings: Settings, processor: OffsetProcessor, **more: Any) -> EngineApp:
    """An engine app on the same topics; nothing connects yet."""
    return create_engine_app(
        # The deadline of a stop is a deadline of the process, which is the tests' here.
        dataclasses.replace(engine_options(settings), stop_deadline_s=NEVER_S),
        processor,
        MemoryStore(),
        partitions=settings.topics.partitions,
        data_dir=Path(tempfile.mkdtemp(prefix="engine-")),
        web_enabled=False,
        table_standby_replicas=0,
        **more,
    )


@asynccontextmanager
async def started(app: faust.App) -> AsyncIterator[None]:
    """The app, running until the end of the block."""
    await app.start()
    try:
        yield
    finally:
        await app.stop()


async def until(condition: Callable[[], object], what: str, deadline_s: float = 20.0) -> None:
    """Wait in the loop until the condition holds."""
    async with asyncio.timeout(deadline_s):
        while not condition():
            await asyncio.sleep(0.01)
    assert condition(), what


async def committed(settings: Settings, partition: int = 0) -> int | None:
    """What the group has committed of one partition; None: nothing."""
    return await asyncio.to_thread(committed_offset, settings, partition)


def committed_offset(settings: Settings, partition: int = 0) -> int | None:
    """As `committed`, for callers without a loop."""
    group = settings.worker.app_id
    with admin_client(settings.kafka.bootstrap_servers) as admin:
        found = admin.list_group_offsets([group])[group]
    at = found.get(TopicPartition(settings.topics.interactions, partition))
    return None if at is None or at.offset < 0 else int(at.offset)


async def idle(stream: Any) -> None:
    """An agent that reads on."""
    async for _ in stream:
        pass


def write(settings: Settings, n: int, first: int = 0) -> None:
    records = [(0, b"user-%d" % (i % 3), b"%d" % i) for i in range(first, first + n)]
    send(settings.kafka.bootstrap_servers, settings.topics.interactions, records)


def stock_message(consumer: Any, tp: TP, offset: int) -> Any:
    """A message of stock's, which the consumer waits for."""
    message = driver.ConsumerMessage(
        tp.topic, tp.partition, offset, 0.0, 0, (), b"k", b"v", None, 0, 0, tp
    )
    consumer.track_message(message)
    return message


def engine_consumer(settings: Settings) -> Consumer:
    """The engine's consumer, not connected."""
    consumer: Consumer = engine_app(settings, OffsetProcessor()).consumer
    consumer.app.topics._acking_topics.add(settings.topics.interactions)
    return consumer


def stock_consumer(settings: Settings) -> Any:
    """Stock's consumer, not connected, of a topic whose messages are acknowledged."""
    app = stock_app(settings, idle)
    app.topics._acking_topics.add(settings.topics.interactions)
    return app.consumer


def deliver(consumer: Consumer, tp: TP, start: int, end: int) -> ChunkMessage:
    """A chunk as the engine's `getmany` notes it."""
    message = consumer._to_message(tp, Chunk((), start, end))
    consumer._inflight[tp].append(message)
    return message


def main() -> None:
    """Run an app that fails: `stock`, or the engine's.

    The latter in its `processor`, in a `task` beside it, or in the client's task that refreshes
    `metadata`. A task fails when the first records are in work, and nothing is acknowledged yet.
    """
    from pipeline.commands.worker import Command
    from pipeline.settings import parse_command

    who, settings = sys.argv[1], parse_command(Command, sys.argv[2:], prog="").settings
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    processor = OffsetProcessor(fails=who == "processor")

    async def work_for_ever(stream: Any) -> None:
        async for _ in stream.take_events(20, within=0.05):
            processor.begun.set()
            await asyncio.sleep(NEVER_S)
            print("finished")

    async def fail_in_work() -> None:
        while not processor.begun.is_set():
            await asyncio.sleep(0.01)
        if who == "metadata":
            client = app.consumer._thread._ensure_consumer()._client
            client._metadata_update = None
            app.consumer._thread.thread_loop.call_soon_threadsafe(client.force_metadata_update)
            return
        msg = "told to fail"
        raise RuntimeError(msg)

    if who == "stock":
        app = stock_app(settings, work_for_ever, broker_commit_interval=NEVER_S)
    else:
        app = engine_app(settings, processor)
    app.task(fail_in_work)
    faust.Worker(app, loop=loop, loglevel="info", quiet=True).execute_from_commandline()


if __name__ == "__main__":
    main()
