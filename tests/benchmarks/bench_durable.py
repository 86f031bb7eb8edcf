"""The durable path without a model: chunks in, rows of 2.3 KB and outputs of 400 bytes out.

    python -m tests.benchmarks.bench_durable [--events N] [--users N] [--rounds N] [--json FILE]

A real Kafka, a real RocksDB, fenced checkpoints. Every event moves its user's row; every user of a
micro-batch gets an output; each row that moved goes to the changelog and to RocksDB once a
checkpoint. CPU time of the process from the first event to the last, at saturation, for several
checkpoint intervals in turn; medians.
"""

import argparse
import asyncio
import os
import subprocess
import sys
import tempfile
import time
from collections.abc import Collection, Mapping, Sequence
from dataclasses import replace
from pathlib import Path

import aiokafka

from pipeline.cluster.broker import running_broker
from pipeline.cluster.topics import create_topics
from pipeline.engine.chunks import Chunk
from pipeline.engine.processor import PartitionResult, Snapshot
from pipeline.settings import BrokerSettings, Settings
from tests.benchmarks.bench_intake import PARTITIONS, TOPIC, settings_for
from tests.benchmarks.report import machine, spread, write_json

ROW_BYTES = 2296
OUTPUT_BYTES = 400
INTERVALS_S = (0.05, 0.1, 0.2, 0.5)


class CountingProcessor:
    """Counts events per user into rows that do not compress; ends the process after the last."""

    def __init__(self, events: int) -> None:
        self._left = self._events = events
        self._started_s: float | None = None
        self._counts: dict[int, dict[bytes, int]] = {p: {} for p in range(PARTITIONS)}
        self._moved: dict[int, set[bytes]] = {p: set() for p in range(PARTITIONS)}
        self._filler = os.urandom(2 * ROW_BYTES)

    def process(self, chunks: Sequence[tuple[int, Chunk]]) -> list[PartitionResult]:
        n = sum(len(chunk) for _, chunk in chunks)
        if self._started_s is None:
            self._started_s = time.process_time()
            self._events -= n
        self._left -= n
        users: dict[int, dict[bytes, None]] = {}
        for partition, chunk in chunks:
            counts, named = self._counts[partition], users.setdefault(partition, {})
            for record in chunk.records:
                counts[record.key] = counts.get(record.key, 0) + 1
                named[record.key] = None
        results = []
        for partition, named in users.items():
            moved = self._moved[partition]
            moved.update(named)
            outputs = [(key, self._filler[:OUTPUT_BYTES]) for key in named]
            results.append(PartitionResult(partition, outputs, [], len(moved)))
        return results

    def refresh(self, owned: Collection[int]) -> Mapping[int, int]:
        """Nothing changes elsewhere."""
        return {}

    def snapshot(self, partition: int) -> Snapshot:
        counts, filler = self._counts[partition], self._filler
        moved, self._moved[partition] = self._moved[partition], set()
        rows: list[tuple[bytes, bytes | None]] = []
        for key in moved:
            count = counts[key]
            rows.append((key, b"%08d" % count + filler[count % 997 : count % 997 + ROW_BYTES - 8]))
        return Snapshot(rows)

    def newer(self, rows: Sequence[bytes], than: Sequence[bytes]) -> list[bool]:
        return [False] * len(rows)

    def settled(self, partition: int, snapshot: Snapshot) -> None:
        if self._left <= 0 and not any(self._moved.values()):
            assert self._started_s is not None
            cpu_s = time.process_time() - self._started_s
            print(f"\n{cpu_s / self._events * 1e6:.3f}", flush=True)
            os._exit(0)

    def forget(self, partition: int) -> None:
        """The process ends with its partitions."""

    def sent(self, results: Sequence[PartitionResult], now_s: float) -> None:
        """Nothing is measured."""


def run(settings: Settings, events: int) -> None:
    import uvloop

    from pipeline.engine.app import create_engine_app
    from pipeline.worker.app import StreamWorker, engine_options
    from state.rocks import RocksStore

    loop = uvloop.new_event_loop()
    asyncio.set_event_loop(loop)
    app = create_engine_app(
        engine_options(settings),
        CountingProcessor(events),
        RocksStore(settings.worker.data_dir / "states", settings.store),
        partitions=PARTITIONS,
        data_dir=settings.worker.data_dir,
        consumer_max_fetch_size=settings.kafka.max_fetch_bytes,
        web_enabled=False,
    )
    StreamWorker(app, loop).execute_from_commandline()


async def fill(address: str, events: int, users: int) -> None:
    """Spread events evenly over users, each user on one partition."""
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address, max_batch_size=250_000)
    await producer.start()
    try:
        for first in range(0, events, 1000):
            for partition in range(PARTITIONS):
                batch = producer.create_batch()
                for i in range(first + partition, min(events, first + 1000), PARTITIONS):
                    batch.append(timestamp=None, key=b"user-%d" % (i % users), value=b"x" * 100)
                batch.close()
                await producer.send_batch(batch, TOPIC, partition=partition)
        await producer.flush()
    finally:
        await producer.stop()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--events", type=int, default=200_000)
    parser.add_argument("--users", type=int, default=5000)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", type=float, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--app-id", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        settings = settings_for(options.address, options.app_id, options.folder)
        worker = replace(settings.worker, checkpoint_interval_s=options.child)
        run(replace(settings, worker=worker), options.events)
    figures: dict[str, list[float]] = {f"{s * 1000:.0f} ms": [] for s in INTERVALS_S}
    with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as name:
        folder = Path(name)
        with running_broker(BrokerSettings(data_dir=folder / "kafka", port=0)) as broker:
            create_topics(settings_for(broker.address, "bench", folder))
            asyncio.run(fill(broker.address, options.events, options.users))
            for number in range(options.rounds):
                for interval_s, measured in zip(INTERVALS_S, figures.values(), strict=True):
                    app_id = f"bench-{number}-{interval_s}"
                    create_topics(settings_for(broker.address, app_id, folder))
                    child = [sys.executable, "-m", "tests.benchmarks.bench_durable"]
                    child += ["--child", str(interval_s), "--address", broker.address]
                    child += ["--app-id", app_id, "--events", str(options.events)]
                    done = subprocess.run(
                        [*child, "--folder", name], capture_output=True, text=True, check=False
                    )
                    if done.returncode:
                        raise RuntimeError(done.stderr[-3000:])
                    measured.append(float(done.stdout.splitlines()[-1]))
    print(f"on {machine()}")
    for interval, us in figures.items():
        print(f"CPU per event, {options.users} users, checkpoint every {interval}: {spread(us)} us")
    write_json(options.json, {"users": options.users, "us_per_event": figures})


if __name__ == "__main__":
    main()
