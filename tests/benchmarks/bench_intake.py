"""Intake alone: records of 100 bytes from a real Kafka to an agent that does nothing.

    python -m tests.benchmarks.bench_intake [--events N] [--rounds N] [--json FILE]

Stock Faust (`take_events(1000, within=0.05)`) against the engine's chunks, in turn, each round a
fresh process that reads the whole topic. CPU time of the process from the first event to the last;
medians, and the ratio round by round.
"""

import argparse
import asyncio
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path

import aiokafka

from pipeline.cluster.broker import running_broker
from pipeline.cluster.topics import create_topics
from pipeline.engine.chunks import Chunk
from pipeline.engine.processor import PartitionResult, Snapshot
from pipeline.settings import BrokerSettings, KafkaSettings, Settings, TopicSettings, WorkerSettings
from tests.benchmarks.report import machine, spread, write_json

PARTITIONS = 4
TOPIC = TopicSettings().interactions


def settings_for(address: str, app_id: str, folder: Path) -> Settings:
    return Settings(
        kafka=KafkaSettings(bootstrap_servers=address),
        topics=TopicSettings(partitions=PARTITIONS),
        worker=WorkerSettings(app_id=app_id, data_dir=folder / app_id),
    )


async def fill(address: str, topic: str, events: int, size_bytes: int = 100) -> None:
    """Spread events of one size over the partitions."""
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address, max_batch_size=250_000)
    await producer.start()
    try:
        for first in range(0, events, 1000):
            batch = producer.create_batch()
            for i in range(first, min(events, first + 1000)):
                batch.append(timestamp=None, key=b"user-%d" % (i % 5000), value=b"x" * size_bytes)
            batch.close()
            partition = first // 1000 % PARTITIONS
            await producer.send_batch(batch, topic, partition=partition)
        await producer.flush()
    finally:
        await producer.stop()


class Stopwatch:
    """Prints the CPU time per event from the first event to the last, then ends the process."""

    def __init__(self, events: int) -> None:
        self.left = self.events = events
        self.started_s: float | None = None

    def count(self, n: int) -> None:
        if self.started_s is None:
            self.started_s = time.process_time()
            self.events -= n  # the first batch starts the clock
        self.left -= n
        if self.left <= 0:
            cpu_s = time.process_time() - self.started_s
            print(f"\n{cpu_s / self.events * 1e6:.3f}", flush=True)  # below what Faust draws
            os._exit(0)


class IdleProcessor:
    """Moves nothing and answers nothing."""

    def __init__(self, stopwatch: Stopwatch) -> None:
        self._stopwatch = stopwatch

    def process(self, chunks: Sequence[tuple[int, Chunk]]) -> list[PartitionResult]:
        self._stopwatch.count(sum(len(chunk) for _, chunk in chunks))
        return [PartitionResult(partition, []) for partition in dict.fromkeys(p for p, _ in chunks)]

    def refresh(self, owned: Collection[int]) -> Mapping[int, int]:
        """Nothing changes elsewhere."""
        return {}

    def snapshot(self, partition: int) -> Snapshot:
        return Snapshot(rows=[])

    def newer(self, rows: Sequence[bytes], than: Sequence[bytes]) -> list[bool]:
        return [False] * len(rows)

    def settled(self, partition: int, snapshot: Snapshot) -> None:
        """Nothing was held."""

    def forget(self, partition: int) -> None:
        """Nothing was held."""

    def sent(self, results: Sequence[PartitionResult], now_s: float) -> None:
        """Nothing is measured."""


def run_chunks(settings: Settings, events: int) -> None:
    import uvloop

    from pipeline.engine.app import create_engine_app
    from pipeline.worker.app import StreamWorker, engine_options
    from state.memory import MemoryStore

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    app = create_engine_app(
        engine_options(settings),
        IdleProcessor(Stopwatch(events)),
        MemoryStore(),
        partitions=PARTITIONS,
        data_dir=settings.worker.data_dir,
        consumer_max_fetch_size=settings.kafka.max_fetch_bytes,
        web_enabled=False,
    )
    StreamWorker(app, loop).execute_from_commandline()


def run_stock(settings: Settings, events: int) -> None:
    import faust

    app = faust.App(
        settings.worker.app_id,
        broker=f"kafka://{settings.kafka.bootstrap_servers}",
        datadir=str(settings.worker.data_dir),
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=PARTITIONS,
        stream_buffer_maxsize=65536,
        web_enabled=False,
    )
    stopwatch = Stopwatch(events)
    raw = {
        "key_type": bytes,
        "key_serializer": "raw",
        "value_type": bytes,
        "value_serializer": "raw",
    }

    @app.agent(app.topic(TOPIC, **raw))
    async def interactions(stream: faust.Stream) -> None:
        async for batch in stream.take_events(1000, within=0.05):
            stopwatch.count(len(batch))

    faust.Worker(
        app, override_logging=False, quiet=True, redirect_stdouts=False
    ).execute_from_commandline()


def measure(variant: str, address: str, events: int, number: int, folder: Path) -> float:
    """Run one variant in a process of its own; its CPU time per event in microseconds."""
    app_id = f"bench-{variant}-{number}"
    create_topics(settings_for(address, app_id, folder))  # its changelog
    command = [sys.executable, "-m", "tests.benchmarks.bench_intake", "--child", variant]
    options = ["--address", address, "--app-id", app_id, "--events", str(events)]
    done = subprocess.run(
        [*command, *options, "--folder", str(folder)],
        capture_output=True,
        text=True,
        timeout=300,
        check=False,
    )
    if done.returncode:
        raise RuntimeError(f"{variant} failed:\n{done.stderr[-3000:]}")
    return float(done.stdout.splitlines()[-1])


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=["chunks", "stock"], help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--app-id", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        settings = settings_for(options.address, options.app_id, options.folder)
        {"chunks": run_chunks, "stock": run_stock}[options.child](settings, options.events)
    with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as name:
        folder = Path(name)
        with running_broker(BrokerSettings(data_dir=folder / "kafka", port=0)) as broker:
            create_topics(settings_for(broker.address, "bench", folder))
            asyncio.run(fill(broker.address, TOPIC, options.events))
            us: dict[str, list[float]] = {"chunks": [], "stock": []}
            for number in range(options.rounds):
                for variant, measured in us.items():
                    measured.append(
                        measure(variant, broker.address, options.events, number, folder)
                    )
    ratios = [stock / chunks for stock, chunks in zip(us["stock"], us["chunks"], strict=True)]
    print(f"on {machine()}")
    print(f"CPU per event, chunks: {spread(us['chunks'])} us")
    print(f"CPU per event, stock:  {spread(us['stock'])} us")
    print(f"stock / chunks: {spread(ratios)}")
    figures = {"us_per_event": us, "ratio_median": statistics.median(ratios)}
    write_json(options.json, figures)


if __name__ == "__main__":
    main()
