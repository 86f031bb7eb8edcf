"""What many partitions cost one worker: 64 of them beside 4, in one run.

    python -m tests.benchmarks.bench_partitions [--rounds N] [--partitions N ...] [--json FILE]

Each partition has a transactional producer of its own, with its own connections. For each number of
partitions, with a topic and a group of its own: the start of a worker until all flow, on an empty
folder with nothing to read; 15 s without a record; 15 s at 500 events a second, each of another
user, spread over the partitions; and, under the same load, a second worker that joins: the pause of
a partition is the longest that one of its events waited for its recommendation, as in
`bench_pauses`. `assignment` and `join_assignment` are from Kafka's word which partitions a worker
gets until all of them flow: of the first on its start, and of the second when it joins;
`join_settled` is from the second one's first word to Kafka until all flow at both. Memory, threads,
connections and open file handles (the connections among them) are those of the first worker.
Medians over rounds, in which the numbers take turns.
"""

import argparse
import statistics
import tempfile
import time
from pathlib import Path

import psutil

from pipeline.cluster.broker import running_broker
from pipeline.settings import BrokerSettings, KafkaSettings, Settings
from tests.benchmarks.bench_pauses import observe
from tests.benchmarks.bench_pipeline import metrics_of, quantile_ms
from tests.benchmarks.group import (
    announce_release,
    bundled_items,
    group_of,
    settings_of_run,
)
from tests.benchmarks.load import Delays, stamp_arrivals, steady_load, users_in_turn
from tests.benchmarks.report import machine, spread, write_json
from tests.worker_process import WorkerProcess

USERS = 20_000
WARM_S = 5.0


def footprint(process: psutil.Process, when: str) -> dict[str, float]:
    """Memory, threads and file handles of a process."""
    memory = process.memory_info()
    return {
        f"rss_mb_{when}": memory.rss / 1e6,
        f"anonymous_mb_{when}": (memory.rss - memory.shared) / 1e6,
        f"threads_{when}": process.num_threads(),
        f"file_handles_{when}": process.num_fds(),
        f"connections_{when}": len(process.net_connections()),
    }


def cpu_s(process: psutil.Process) -> float:
    """CPU time of all its threads."""
    times = process.cpu_times()
    return times.user + times.system


def shares(
    worker: WorkerProcess, kafka: psutil.Process, seconds: float, when: str
) -> dict[str, float]:
    """Shares of a core that worker and Kafka take for some time, and the worker's latency in it."""
    process = psutil.Process(worker.process.pid)
    before, began_s = metrics_of(worker), time.monotonic()
    worker_s, kafka_s = cpu_s(process), cpu_s(kafka)
    time.sleep(seconds)
    worker_s, kafka_s = cpu_s(process) - worker_s, cpu_s(kafka) - kafka_s
    wall_s, after = time.monotonic() - began_s, metrics_of(worker)
    found = {f"core_share_{when}": worker_s / wall_s, f"kafka_core_share_{when}": kafka_s / wall_s}
    events = after["lrurec_batch_events_sum"] - before["lrurec_batch_events_sum"]
    if events:
        batches = after["lrurec_batch_events_count"] - before["lrurec_batch_events_count"]
        checkpoints = (
            after["lrurec_checkpoint_seconds_count"] - before["lrurec_checkpoint_seconds_count"]
        )
        found |= {
            "events_per_s": events / wall_s,
            "batches_per_s": batches / wall_s,
            "checkpoints_per_s": checkpoints / wall_s,
            "p50_ms": quantile_ms(before, after, 0.5),
            "p99_ms": quantile_ms(before, after, 0.99),
        }
    return found


def measure(
    settings: Settings, kafka: psutil.Process, seconds: float, rate: float
) -> dict[str, float]:
    """All figures of one number of partitions."""
    stamp_arrivals(settings)
    began_s = time.monotonic()
    with group_of(settings, ["first"]) as group:
        found = {"start_s": time.monotonic() - began_s}
        worker = group.workers["first"]
        process = psutil.Process(worker.process.pid)
        found["assignment_s"] = group.assignment_s("first")
        time.sleep(WARM_S)
        found |= footprint(process, "idle") | shares(worker, kafka, seconds, "idle")
        delays = Delays(settings)
        with steady_load(settings, rate, users_in_turn, USERS, bundled_items()):
            time.sleep(WARM_S)
            found |= shares(worker, kafka, seconds, "loaded") | footprint(process, "loaded")
            delays.catch_up()
            pauses = observe(group, delays, lambda: group.start("second"), joins="second")
        found |= {
            "join_moved_s": pauses.moved_s,
            "join_kept_s": pauses.kept_s,
            "join_settled_s": pauses.settled_s,
            "join_assignment_s": group.assignment_s("second"),
        }
    return found


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--partitions", type=int, nargs="+", default=[4, 64])
    parser.add_argument("--seconds", type=float, default=15.0, help="idle, and under load")
    parser.add_argument("--rate", type=float, default=500.0, help="events a second")
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    figures: dict[int, dict[str, list[float]]] = {}
    with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as name:
        folder = Path(name)
        with running_broker(BrokerSettings(data_dir=folder / "kafka", port=0)) as broker:
            kafka = KafkaSettings(bootstrap_servers=broker.address)
            for number in range(options.rounds):
                for partitions in options.partitions:
                    run = f"of-{partitions}-{number}"
                    settings = settings_of_run(kafka, run, folder, partitions)
                    if not figures:
                        announce_release(settings, folder)
                    found = measure(
                        settings, psutil.Process(broker.pid), options.seconds, options.rate
                    )
                    for key, value in found.items():
                        figures.setdefault(partitions, {}).setdefault(key, []).append(value)
                    medians = {
                        count: {key: statistics.median(values) for key, values in of_count.items()}
                        for count, of_count in figures.items()
                    }
                    write_json(options.json, {"medians": medians, "rounds": figures})
                    print(f"round {number}, {partitions} partitions: done", flush=True)
    print(f"on {machine()}")
    for partitions, of_count in figures.items():
        print(f"{partitions} partitions")
        for key, values in of_count.items():
            print(f"  {key:22} {spread(values)}")


if __name__ == "__main__":
    main()
