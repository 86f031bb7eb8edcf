"""Restoring state rows from a changelog, by one connection for all partitions and by the plain way.

    python -m tests.benchmarks.bench_restore [--rows N] [--rounds N] [--json FILE]

A real Kafka, a real RocksDB; rows of 2.3 KB that do not compress, each of another user, in
transactions as checkpoints write them, over four partitions. `restore` is what a worker does with
an empty disk; `plain` is what a user of aiokafka would write: a consumer for each partition,
`getmany`, and the rows of each answer put into the store in one logged batch. Each round is a
process of its own. Rows per second, and microseconds of CPU a row, Kafka's not counted; medians.
"""

import argparse
import asyncio
import os
import random
import subprocess
import sys
import tempfile
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path

import aiokafka
from aiokafka.structs import TopicPartition

from pipeline.cluster.broker import running_broker
from pipeline.cluster.topics import CHANGELOG_CONFIG
from pipeline.engine.changelog_reader import ChangelogReader
from pipeline.engine.options import EngineOptions
from pipeline.engine.sending import send_records
from pipeline.settings import BrokerSettings
from state.rocks import RocksStore
from tests.benchmarks.report import machine, spread, write_json
from tests.kafka import create_topic

TOPIC = "bench-users-changelog"
PARTITIONS = 4
ROW_BYTES = 2296
TRANSACTION_ROWS = 500
WAYS = ("restore", "plain")


async def fill(address: str, rows: int) -> None:
    """Write every user's row once, users in no order."""
    users = list(range(rows))
    random.Random(1).shuffle(users)
    filler = os.urandom(2 * ROW_BYTES)
    producers = [
        aiokafka.AIOKafkaProducer(
            bootstrap_servers=address, transactional_id=f"bench-{p}", max_batch_size=900_000
        )
        for p in range(PARTITIONS)
    ]

    async def fill_partition(number: int) -> None:
        producer, own = producers[number], users[number::PARTITIONS]
        await producer.start()
        try:
            for first in range(0, len(own), TRANSACTION_ROWS):
                await producer.begin_transaction()
                some: list[tuple[bytes, bytes | None]] = [
                    (b"user-%d" % user, filler[user % ROW_BYTES :][:ROW_BYTES])
                    for user in own[first : first + TRANSACTION_ROWS]
                ]
                await send_records(producer, TOPIC, number, some)
                await producer.commit_transaction()
        finally:
            await producer.stop()

    await asyncio.gather(*[fill_partition(number) for number in range(PARTITIONS)])


async def restore(address: str, store: RocksStore) -> None:
    """What a worker does, but for the fences."""
    disk = ThreadPoolExecutor(1)
    options = EngineOptions(
        kafka={"bootstrap_servers": [address]},
        app_id="bench",
        source="",
        output="",
        dead_letters="",
        changelog=TOPIC,
    )
    reader = ChangelogReader(
        options,
        PARTITIONS,
        store,
        disk,
        lambda rows, than: [False] * len(rows),
        lambda standby, rows: None,
    )

    async def restore_partition(number: int) -> None:
        reading = await reader.begin(number, b"bench")
        await reader.catch_up(reading)
        await reader.settle(reading)

    await asyncio.gather(*[restore_partition(number) for number in range(PARTITIONS)])
    await reader.stop()


async def plain(address: str, store: RocksStore) -> None:
    """A consumer for each partition, and the public interface of aiokafka."""

    async def read(number: int) -> None:
        tp = TopicPartition(TOPIC, number)
        consumer = aiokafka.AIOKafkaConsumer(
            bootstrap_servers=address,
            group_id=None,
            isolation_level="read_committed",
            enable_auto_commit=False,
            auto_offset_reset="earliest",
        )
        await consumer.start()
        try:
            consumer.assign([tp])
            end = (await consumer.end_offsets([tp]))[tp]
            consumer.seek(tp, 0)
            store.open(number)
            while await consumer.position(tp) < end:
                for records in (await consumer.getmany(tp, timeout_ms=200)).values():
                    rows = [(record.key or b"", record.value) for record in records]
                    store.write(number, rows, records[-1].offset)
        finally:
            await consumer.stop()

    await asyncio.gather(*[read(number) for number in range(PARTITIONS)])


def run(way: str, address: str, folder: Path, rows: int) -> None:
    """Restore into an empty folder and print rows/s and us a row."""
    import uvloop

    store = RocksStore(folder)
    started_s, cpu_s = time.perf_counter(), time.process_time()
    uvloop.run((restore if way == "restore" else plain)(address, store))
    took_s, cpu_s = time.perf_counter() - started_s, time.process_time() - cpu_s
    found = sum(1 for number in range(PARTITIONS) for _ in store.scan(number))
    if found != rows:
        raise SystemExit(f"expected {rows} rows in the store, got {found}")
    print(f"{rows / took_s} {cpu_s / rows * 1e6}")
    store.close_all()


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rows", type=int, default=200_000)
    parser.add_argument("--rounds", type=int, default=5)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--child", choices=WAYS, help=argparse.SUPPRESS)
    parser.add_argument("--address", help=argparse.SUPPRESS)
    parser.add_argument("--folder", type=Path, help=argparse.SUPPRESS)
    options = parser.parse_args()
    if options.child:
        run(options.child, options.address, options.folder, options.rows)
        return
    per_s: dict[str, list[float]] = {way: [] for way in WAYS}
    us_per_row: dict[str, list[float]] = {way: [] for way in WAYS}
    with (
        tempfile.TemporaryDirectory(prefix="lrurec-bench-") as name,
        running_broker(BrokerSettings(data_dir=Path(name) / "kafka", port=0)) as broker,
    ):
        create_topic(broker.address, TOPIC, partitions=PARTITIONS, config=dict(CHANGELOG_CONFIG))
        asyncio.run(fill(broker.address, options.rows))
        for _ in range(options.rounds):
            for way in WAYS:
                with tempfile.TemporaryDirectory(dir=name) as folder:
                    child = [sys.executable, "-m", "tests.benchmarks.bench_restore"]
                    child += ["--child", way, "--address", broker.address]
                    child += ["--folder", folder, "--rows", str(options.rows)]
                    done = subprocess.run(child, capture_output=True, text=True, check=False)
                if done.returncode:
                    raise RuntimeError(done.stderr[-3000:])
                rate, us = map(float, done.stdout.splitlines()[-1].split())
                per_s[way].append(rate)
                us_per_row[way].append(us)
    print(f"on {machine()}")
    for way in WAYS:
        print(f"{way}: {spread(per_s[way])} rows/s, CPU a row: {spread(us_per_row[way])} us")
    figures = {"rows": options.rows, "row_bytes": ROW_BYTES, "partitions": PARTITIONS}
    write_json(options.json, {**figures, "rows_per_s": per_s, "us_per_row": us_per_row})


if __name__ == "__main__":
    main()
