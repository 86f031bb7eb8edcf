"""The whole worker: a real Kafka, a release over the bundled catalogue, top-10 for every user.

    python -m tests.benchmarks.bench_pipeline [--seconds S] [--rounds N] [--json FILE]

Events are those of the bundled Online Retail data. Saturation: the topic is filled first, then a
worker reads it all, (a) in the order things happened, where a basket's items come together, and (b)
shuffled, so that nearly every event of a micro-batch is another user's. Then latency from the
record's timestamp to its recommendation, and the share of a core, at steady rates. The weights are
random: the cost is that of trained ones. Medians over rounds.
"""

import argparse
import asyncio
import gzip
import multiprocessing
import os
import random
import statistics
import tempfile
import time
from collections.abc import Iterator, Mapping
from contextlib import contextmanager
from dataclasses import replace
from importlib.resources import files
from pathlib import Path
from typing import Any
from urllib.request import urlopen

import aiokafka
from kafka.partitioner.default import murmur2

from pipeline.cluster.broker import running_broker
from pipeline.cluster.topics import create_topics
from pipeline.settings import BrokerSettings, MetricsSettings
from pipeline.worker.releases import announce
from tests.benchmarks.bench_intake import PARTITIONS, settings_for
from tests.benchmarks.report import machine, spread, write_json
from tests.releases import random_release
from tests.worker_process import WorkerProcess, running_worker

RATES = (500, 5000)
DELAY = "lrurec_event_to_recommendation_seconds_bucket"
POLL_S = 0.05


def interactions() -> list[tuple[bytes, bytes]]:
    """(user, value) of every row, in order of time."""
    data = files("pipeline.data").joinpath("online-retail.csv.gz").read_bytes()
    rows = [line.split(",")[:3] for line in gzip.decompress(data).decode().splitlines()[1:]]
    return [
        (
            user.encode(),
            f'{{"user_id":"{user}","item_id":"{item}","timestamp_ms":{int(at) * 1000}}}'.encode(),
        )
        for user, item, at in rows
    ]


async def produce(
    address: str, topic: str, events: list[tuple[bytes, bytes]], rate: float | None
) -> None:
    """Send events by key; at a steady rate, in steps of 5 ms, where one is given."""
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address, max_batch_size=250_000)
    await producer.start()
    try:
        step = 1000 if rate is None else max(1, round(rate / 200))
        started_s = time.monotonic()
        for first in range(0, len(events), step):
            batches: dict[int, Any] = {}
            for key, value in events[first : first + step]:
                partition = (murmur2(key) & 0x7FFFFFFF) % PARTITIONS
                if partition not in batches:
                    batches[partition] = producer.create_batch()
                batches[partition].append(timestamp=None, key=key, value=value)
            for partition, batch in batches.items():
                batch.close()
                await producer.send_batch(batch, topic, partition=partition)
            if rate is not None:
                ahead_s = started_s + (first + step) / rate - time.monotonic()
                if ahead_s > 0:
                    await asyncio.sleep(ahead_s)
        await producer.flush()
    finally:
        await producer.stop()


def produce_now(
    address: str, topic: str, events: list[tuple[bytes, bytes]], rate: float | None = None
) -> None:
    asyncio.run(produce(address, topic, events, rate))


def produce_when_told(
    go: Any, address: str, topic: str, events: list[tuple[bytes, bytes]], rate: float
) -> None:
    """The same in a process of its own, whose start takes seconds."""
    go.wait()
    produce_now(address, topic, events, rate)


def metrics_of(worker: WorkerProcess) -> dict[str, float]:
    port = worker.settings.metrics.port
    with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    series = (line.rpartition(" ") for line in lines if not line.startswith("#"))
    return {name: float(value) for name, _, value in series}


def answered(metrics: Mapping[str, float]) -> float:
    return metrics['lrurec_events_total{result="applied"}']


def quantile_ms(before: Mapping[str, float], after: Mapping[str, float], q: float) -> float:
    """A quantile of the delays between two scrapes, linear within a bucket."""
    buckets = [
        (
            float(name.split('le="')[1].rstrip('"}').replace("+Inf", "inf")),
            after[name] - before[name],
        )
        for name in after
        if name.startswith(DELAY)
    ]
    wanted = q * buckets[-1][1]
    low, below = 0.0, 0.0
    for bound, count in buckets:
        if count >= wanted:
            inside = (wanted - below) / max(count - below, 1e-9)
            return 1000 * (low if bound == float("inf") else low + (bound - low) * inside)
        low, below = bound, count
    return float("nan")


@contextmanager
def fresh_worker(address: str, folder: Path, name: str, port: int) -> Iterator[WorkerProcess]:
    settings = settings_for(address, name, folder)
    topics = replace(settings.topics, interactions=name, recommendations=f"{name}-out")
    settings = replace(settings, topics=topics, metrics=MetricsSettings(port=port))
    create_topics(settings)
    with running_worker(settings) as worker:
        yield worker


def saturation(
    address: str, folder: Path, name: str, events: list[tuple[bytes, bytes]], port: int
) -> dict[str, float]:
    """Events per second and CPU per event of a worker that finds the topic full."""
    settings = settings_for(address, name, folder)
    topics = replace(settings.topics, interactions=name, recommendations=f"{name}-out")
    create_topics(replace(settings, topics=topics))
    produce_now(address, name, events)
    with fresh_worker(address, folder, name, port) as worker:
        worker.wait_until_ready()
        first = metrics_of(worker)
        started_s, last = time.monotonic(), first
        while answered(last) < len(events):
            time.sleep(POLL_S)
            last = metrics_of(worker)
        wall_s = time.monotonic() - started_s
        n = answered(last) - answered(first)
        cpu_s = last["process_cpu_seconds_total"] - first["process_cpu_seconds_total"]
    return {"events_per_s": n / wall_s, "cpu_us_per_event": cpu_s / n * 1e6}


def steady(
    worker: WorkerProcess, address: str, events: list[tuple[bytes, bytes]], rate: int
) -> dict[str, float]:
    """Latency and share of a core at a rate."""
    topic = worker.settings.topics.interactions
    spawn = multiprocessing.get_context("spawn")
    go = spawn.Event()
    producer = spawn.Process(
        target=produce_when_told, args=(go, address, topic, events, float(rate))
    )
    producer.start()
    time.sleep(8)  # until it waits
    before, started_s = metrics_of(worker), time.monotonic()
    go.set()
    producer.join()
    produced_s = time.monotonic() - started_s
    time.sleep(0.2)
    after, seconds = metrics_of(worker), time.monotonic() - started_s
    cpu_s = after["process_cpu_seconds_total"] - before["process_cpu_seconds_total"]
    return {
        "p50_ms": quantile_ms(before, after, 0.5),
        "p99_ms": quantile_ms(before, after, 0.99),
        "core_share": cpu_s / seconds,
        "produced_per_s": len(events) / produced_s,
        "batches_per_s": (after["lrurec_batch_events_count"] - before["lrurec_batch_events_count"])
        / seconds,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--seconds", type=float, default=15.0, help="at each steady rate")
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--port", type=int, default=19108)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = interactions()
    shuffled = random.Random(0).sample(rows, len(rows))
    figures: dict[str, dict[str, list[float]]] = {}

    def note(what: str, measured: dict[str, float]) -> None:
        for name, value in measured.items():
            figures.setdefault(what, {}).setdefault(name, []).append(value)

    with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as name:
        folder = Path(name)
        with running_broker(BrokerSettings(data_dir=folder / "kafka", port=0)) as broker:
            address = broker.address
            settings = settings_for(address, "bench", folder)
            create_topics(settings)
            ids = sorted(
                {value.split(b'"item_id":"')[1].split(b'"')[0].decode() for _, value in rows}
            )
            release = random_release(folder / "releases", ids, hidden_size=64, max_length=50)
            announce(settings, release)
            for number in range(options.rounds):
                for what, events in (("as it happened", rows), ("shuffled", shuffled)):
                    run = f"saturation-{what.split()[0]}-{number}"
                    some = events[:150_000]
                    note(
                        f"saturation, {what}", saturation(address, folder, run, some, options.port)
                    )
                for rate in RATES:
                    run = f"steady-{rate}-{number}"
                    with fresh_worker(address, folder, run, options.port) as worker:
                        worker.wait_until_ready()
                        produce_now(address, run, rows[:2000], float(rate))  # warm up
                        some = rows[2000 : 2000 + round(rate * options.seconds)]
                        note(f"{rate} events/s", steady(worker, address, some, rate))
    print(f"on {machine()}")
    for what, measured in figures.items():
        print(what)
        for name, values in measured.items():
            print(f"  {name:18} {spread(values)}")
    medians = {
        what: {name: statistics.median(values) for name, values in measured.items()}
        for what, measured in figures.items()
    }
    write_json(options.json, {"threads": os.environ.get("OMP_NUM_THREADS"), "medians": medians})  # noqa: TID251


if __name__ == "__main__":
    main()
