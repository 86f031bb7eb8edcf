"""One worker for a long time: do memory, file handles, lag and latency stay as they are?

    python -m tests.benchmarks.bench_soak [--minutes M] [--rate R] [--json FILE] [--plot FILE.svg]

The bundled purchases, shuffled, without end, each user five times over: 21,695 users, twice as many
as may be hot, so that rows come and go and RocksDB flushes and compacts all the time. Every five
seconds a sample; figures and plot are written anew after each, so a run that is cut short has them,
too. Topics keep little, or twenty minutes would take 20 GB of disk; Kafka looks every five
minutes.

Memory is what is resident, and of that what is no file's: pages of libraries come in as they are
first used, and go when others need the room. Flat means: over the second half, a straight line
through the samples rises by at most 1 % of their mean, or by less than can be told from their
scatter (two standard errors). The first half is left to the start: users that come for the first
time, caches that fill.
"""

import argparse
import math
import os
import signal
import statistics
import sys
import tempfile
import time
from collections.abc import Mapping, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

import psutil

from pipeline.cluster.broker import running_broker
from pipeline.cluster.topics import changelog_name
from pipeline.settings import BrokerSettings, KafkaSettings, Settings
from tests.benchmarks.bench_pipeline import metrics_of, quantile_ms
from tests.benchmarks.group import announce_release, group_of, settings_of_run
from tests.benchmarks.load import bundled_shuffled, set_topic, steady_load
from tests.benchmarks.plot import Panel, write_lines
from tests.benchmarks.report import machine, write_json

PARTITIONS = 4
COPIES = 5
WARM_S = 15.0  # everything is new to the worker
SAMPLE_S = 5.0
FLAT_SHARE = 0.01
MALLOC = ("MALLOC_MMAP_MAX_", "MALLOC_TRIM_THRESHOLD_", "MALLOC_ARENA_MAX", "OMP_NUM_THREADS")
WATCHED = ("rss_mb", "anonymous_mb", "file_handles", "threads")
Sample = dict[str, float]


def keep_little(settings: Settings) -> None:
    """Let Kafka remove what was read; the worker never restarts here, so nobody misses it."""
    little = {
        "cleanup.policy": "delete",
        "retention.ms": "60000",
        "segment.bytes": str(32 * 1024 * 1024),
        "segment.ms": "60000",
    }
    topics = settings.topics
    changelog = changelog_name(settings.worker.app_id)
    for topic in (topics.interactions, topics.recommendations, changelog):
        set_topic(settings, topic, little)


def total(metrics: Mapping[str, float], name: str) -> float:
    """A metric's sum over its labels."""
    return sum(v for key, v in metrics.items() if key == name or key.startswith(name + "{"))


def sample(
    process: psutil.Process, began_s: float, before: Mapping[str, float], now: Mapping[str, float]
) -> Sample:
    """What is seen now, and what happened since the last look."""
    times, memory = process.cpu_times(), process.memory_info()
    events = total(now, "lrurec_events_total") - total(before, "lrurec_events_total")
    reads = 'lrurec_hot_row_reads_total{result="%s"}'
    looked_up = {r: now[reads % r] - before[reads % r] for r in ("hit", "miss")}
    return {
        "minute": (time.monotonic() - began_s) / 60,
        "rss_mb": memory.rss / 1e6,
        "anonymous_mb": (memory.rss - memory.shared) / 1e6,
        "file_handles": process.num_fds(),
        "threads": process.num_threads(),
        "lag_events": total(now, "lrurec_consumer_lag_events"),
        "events": events,
        "p50_ms": quantile_ms(before, now, 0.5) if events else float("nan"),
        "p99_ms": quantile_ms(before, now, 0.99) if events else float("nan"),
        "hot_rows": now["lrurec_hot_rows"],
        "hot_share": looked_up["hit"] / max(1.0, sum(looked_up.values())),
        "cpu_s": times.user + times.system,
    }


def trend(samples: Sequence[Sample], name: str) -> dict[str, Any]:
    """The straight line through the second half, and whether it is flat."""
    half = samples[len(samples) // 2 :]
    if len(half) < 3:
        return {}
    minutes, values = [one["minute"] for one in half], [one[name] for one in half]
    line, mean = statistics.linear_regression(minutes, values), statistics.mean(values)
    off = [v - line.intercept - line.slope * m for m, v in zip(minutes, values, strict=True)]
    squares = sum((m - statistics.mean(minutes)) ** 2 for m in minutes)
    error = math.sqrt(sum(o * o for o in off) / (len(off) - 2) / squares)
    span = minutes[-1] - minutes[0]
    return {
        "per_minute": line.slope,
        "standard_error": error,
        "minutes": span,
        "rise": line.slope * span,
        "mean": mean,
        "least": min(values),
        "most": max(values),
        "flat": line.slope * span <= FLAT_SHARE * mean or line.slope <= 2 * error,
    }


def write(options: argparse.Namespace, samples: Sequence[Sample], *, complete: bool) -> None:
    """Write what there is so far."""
    if len(samples) < 2:
        return
    half = samples[len(samples) // 2 :]
    figures = {
        "complete": complete,
        "rate": options.rate,
        "hot_rows_at_most": options.hot_rows,
        "environment": {name: os.environ.get(name) for name in MALLOC},  # noqa: TID251
        "second_half": {
            **{name: trend(samples, name) for name in WATCHED},
            "events_per_s": sum(one["events"] for one in half[1:])
            / max(1e-9, 60 * (half[-1]["minute"] - half[0]["minute"])),
            "core_share": (half[-1]["cpu_s"] - half[0]["cpu_s"])
            / max(1e-9, 60 * (half[-1]["minute"] - half[0]["minute"])),
            "p50_ms": statistics.median(one["p50_ms"] for one in half),
            "p99_ms": statistics.median(one["p99_ms"] for one in half),
            "worst_p99_ms": max(one["p99_ms"] for one in half),
            "most_lag_events": max(one["lag_events"] for one in half),
        },
        "samples": samples,
    }
    write_json(options.json, figures)
    if options.plot is not None:
        panels = {
            "memory, MB": {"resident": "rss_mb", "not of files": "anonymous_mb"},
            "open file handles and threads": {"file handles": "file_handles", "threads": "threads"},
            "event to recommendation, ms, every five seconds": {"p99": "p99_ms", "p50": "p50_ms"},
            "records that wait": {"lag": "lag_events"},
        }
        write_lines(
            options.plot,
            f"One worker at {options.rate:,.0f} events/s",
            [
                Panel(
                    title=title,
                    x="minutes" if title == list(panels)[-1] else "",
                    lines={
                        name: [(one["minute"], one[column]) for one in samples]
                        for name, column in columns.items()
                    },
                    height=120,
                )
                for title, columns in panels.items()
            ],
        )


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=20.0)
    parser.add_argument("--rate", type=float, default=5000.0, help="events a second")
    parser.add_argument("--hot-rows", type=int, default=10_000)
    parser.add_argument("--json", type=Path)
    parser.add_argument("--plot", type=Path, help="where to draw the samples, as SVG")
    options = parser.parse_args()
    signal.signal(signal.SIGTERM, lambda *_: sys.exit(143))  # so that workers and Kafka end, too
    samples: list[Sample] = []
    with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as name:
        folder = Path(name)
        with running_broker(BrokerSettings(data_dir=folder / "kafka", port=0)) as broker:
            kafka = KafkaSettings(bootstrap_servers=broker.address)
            settings = settings_of_run(kafka, "soak", folder, PARTITIONS)
            worker_settings = replace(settings.worker, hot_rows=options.hot_rows, threads=None)
            settings = replace(settings, worker=worker_settings)
            announce_release(settings, folder)
            with group_of(settings, ["first"]) as group:
                keep_little(settings)
                worker = group.workers["first"]
                process = psutil.Process(worker.process.pid)
                with steady_load(settings, options.rate, bundled_shuffled, COPIES) as load:
                    time.sleep(WARM_S)
                    began_s, last = time.monotonic(), metrics_of(worker)
                    for number in range(1, round(options.minutes * 60 / SAMPLE_S) + 1):
                        time.sleep(max(0.0, began_s + number * SAMPLE_S - time.monotonic()))
                        if worker.process.poll() is not None or not load.is_alive():
                            who = "load" if worker.process.poll() is None else "worker"
                            raise RuntimeError(f"the {who} ended:\n{worker.log()[-3000:]}")
                        now = metrics_of(worker)
                        samples.append(sample(process, began_s, last, now))
                        last = now
                        write(options, samples, complete=False)
                        if number % 12 == 0:
                            one = samples[-1]
                            print(
                                f"minute {one['minute']:.1f}: {one['rss_mb']:.0f} MB, "
                                f"{one['file_handles']:.0f} file handles, "
                                f"{one['threads']:.0f} threads, "
                                f"p50 {one['p50_ms']:.0f} ms, p99 {one['p99_ms']:.0f} ms, "
                                f"{one['lag_events']:.0f} records wait",
                                flush=True,
                            )
    write(options, samples, complete=True)
    print(f"on {machine()}")
    for name in WATCHED:
        if line := trend(samples, name):
            print(
                f"{name}: {line['per_minute']:+.3f} a minute (standard error "
                f"{line['standard_error']:.3f}) over the last "
                f"{line['minutes']:.0f} minutes, {line['rise'] / line['mean']:+.2%} of "
                f"{line['mean']:.0f}: {'flat' if line['flat'] else 'NOT flat'}"
            )


if __name__ == "__main__":
    main()
