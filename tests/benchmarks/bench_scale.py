"""One worker process beside two on one machine: `lrurec worker --processes N`, all else the same.

    OMP_NUM_THREADS=1 python -m tests.benchmarks.bench_scale [--rounds N] [--events N] [--json FILE]

The shuffled events of `bench_pipeline`, nearly each of another user, fill the topic; the clock runs
from then until nine tenths are answered, so that neither the start nor the last few of the slower
process count. Kafka runs on the same machine, and its CPU is counted beside the workers'.

`saturation` is what this machine gives; with no more cores than workers, Kafka takes from them. So
`half cores` gives each worker process half of one core of its own (pinned to it, and stopped for
10 of every 20 ms) and leaves the rest to Kafka: what a second process adds where a second core is
free. Medians over rounds, in which the variants take turns.
"""

import argparse
import os
import random
import signal
import statistics
import tempfile
import threading
import time
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, nullcontext
from dataclasses import replace
from pathlib import Path
from urllib.request import urlopen

import psutil

from pipeline.cluster.broker import running_broker
from pipeline.cluster.topics import create_topics
from pipeline.settings import BrokerSettings, MetricsSettings, Settings
from pipeline.worker.releases import announce
from tests.benchmarks.bench_intake import PARTITIONS, settings_for
from tests.benchmarks.bench_pipeline import interactions, produce_now
from tests.benchmarks.report import machine, spread, write_json
from tests.releases import random_release
from tests.supervised_worker import SupervisedWorker, running_supervisor

PROCESSES = (1, 2)
COUNTED_SHARE = 0.9
SLICE_S = 0.01
POLL_S = 0.05


def total(settings: Settings, name: str) -> float:
    """A metric's sum over its labels and all processes."""
    with urlopen(f"http://127.0.0.1:{settings.metrics.port}/metrics", timeout=10) as answer:
        lines = answer.read().decode().splitlines()
    series = (line.rpartition(" ") for line in lines)
    return sum(float(v) for key, _, v in series if key == name or key.startswith(name + "{"))


def workers_of(worker: SupervisedWorker, processes: int) -> list[psutil.Process]:
    """The processes that do the work: one alone has no supervisor."""
    if processes == 1:
        return [psutil.Process(worker.process.pid)]
    return list(worker.children().values())


def cpu_s(processes: Sequence[psutil.Process]) -> float:
    """CPU time of all their threads."""
    times = [process.cpu_times() for process in processes]
    return sum(one.user + one.system for one in times)


@contextmanager
def half_a_core_each(processes: Sequence[psutil.Process]) -> Iterator[None]:
    """Pin each process to a core of its own, and let it run for half of the time."""
    cores = sorted(os.sched_getaffinity(0))
    for process, core in zip(processes, cores, strict=False):
        for thread in process.threads():  # those that start later inherit it
            os.sched_setaffinity(thread.id, {core})
    done = threading.Event()

    def run() -> None:
        while not done.is_set():
            for number in (signal.SIGSTOP, signal.SIGCONT):
                for process in processes:
                    process.send_signal(number)
                time.sleep(SLICE_S)

    thread = threading.Thread(target=run)
    thread.start()
    try:
        yield
    finally:
        done.set()
        thread.join()


def measure(
    settings: Settings,
    broker: psutil.Process,
    processes: int,
    events: list[tuple[bytes, bytes]],
    *,
    half: bool,
) -> dict[str, float]:
    """Events a second and CPU an event of so many processes."""
    create_topics(settings)
    with running_supervisor(settings, processes) as worker:
        worker.wait_until_ready()
        while total(settings, "lrurec_partitions_owned") < PARTITIONS:
            time.sleep(POLL_S)
        at_work = workers_of(worker, processes)
        with half_a_core_each(at_work) if half else nullcontext():
            produce_now(settings.kafka.bootstrap_servers, settings.topics.interactions, events)
            began = total(settings, "lrurec_events_total")
            began_s, workers_s, kafka_s = time.monotonic(), cpu_s(at_work), cpu_s([broker])
            answered = began
            while answered < COUNTED_SHARE * len(events):
                time.sleep(POLL_S)
                answered = total(settings, "lrurec_events_total")
            wall_s = time.monotonic() - began_s
            workers_s, kafka_s = cpu_s(at_work) - workers_s, cpu_s([broker]) - kafka_s
    n = answered - began
    return {
        "events_per_s": n / wall_s,
        "workers_us_per_event": workers_s / n * 1e6,
        "kafka_us_per_event": kafka_s / n * 1e6,
        "workers_cores": workers_s / wall_s,
    }


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=2)
    parser.add_argument("--events", type=int, default=150_000)
    parser.add_argument("--port", type=int, default=19108)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rows = interactions()
    events = random.Random(0).sample(rows, min(options.events, len(rows)))
    figures: dict[str, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as name:
        folder = Path(name)
        with running_broker(BrokerSettings(data_dir=folder / "kafka", port=0)) as info:
            broker = psutil.Process(info.pid)
            base = settings_for(info.address, "bench", folder)
            create_topics(base)
            ids = sorted(
                {value.split(b'"item_id":"')[1].split(b'"')[0].decode() for _, value in rows}
            )
            announce(base, random_release(folder / "releases", ids, hidden_size=64, max_length=50))
            for number in range(options.rounds):
                for half in (False, True):
                    for processes in PROCESSES:
                        run = f"scale-{number}-{processes}-{'half' if half else 'whole'}"
                        settings = settings_for(info.address, run, folder / run)
                        settings = replace(
                            settings,
                            topics=replace(
                                settings.topics, interactions=run, recommendations=f"{run}-out"
                            ),
                            metrics=MetricsSettings(port=options.port),
                        )
                        some = events[: len(events) // 2] if half else events
                        what = "half cores" if half else "saturation"
                        found = measure(settings, broker, processes, some, half=half)
                        for key, value in found.items():
                            of_variant = figures.setdefault(f"{what}, {processes} processes", {})
                            of_variant.setdefault(key, []).append(value)
    print(f"on {machine()}")
    for what, measured in figures.items():
        print(what)
        for name, values in measured.items():
            print(f"  {name:22} {spread(values)}")
    medians = {
        what: {name: statistics.median(values) for name, values in measured.items()}
        for what, measured in figures.items()
    }
    ratios = {}
    for what in ("saturation", "half cores"):
        one, two = (medians[f"{what}, {n} processes"]["events_per_s"] for n in PROCESSES)
        ratios[what] = two / one
        print(f"two processes beside one, {what}: {two / one:.2f}")
    threads = os.environ.get("OMP_NUM_THREADS")  # noqa: TID251
    write_json(options.json, {"threads": threads, "medians": medians, "ratios": ratios})


if __name__ == "__main__":
    main()
