"""A group of real workers on a release over the bundled catalogue, and who has which partition."""

import re
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from dataclasses import replace
from datetime import datetime
from pathlib import Path

from pipeline.cluster.topics import create_topics
from pipeline.settings import (
    KafkaSettings,
    MetricsSettings,
    Settings,
    TopicSettings,
    WorkerSettings,
)
from pipeline.worker.releases import announce
from tests.benchmarks.bench_pipeline import interactions
from tests.kafka import free_port, wait_until
from tests.releases import random_release
from tests.worker_process import WorkerProcess

FLOWS = re.compile(r"generation \d+: kept partitions \[(.*?)\] .*gained \[(.*?)\] after ([\d.]+) s")
SPEAKS_TO_KAFKA = "pipeline.engine.app: joining group"
FLOW_DEADLINE_S = 120.0


def bundled_items() -> list[str]:
    """The ids of the bundled catalogue."""
    return sorted(
        {value.split(b'"item_id":"')[1].split(b'"')[0].decode() for _, value in interactions()}
    )


def announce_release(settings: Settings, folder: Path) -> None:
    """Write a release of the bundled catalogue with random weights and announce it."""
    create_topics(settings)
    release = random_release(folder / "releases", bundled_items(), hidden_size=64, max_length=50)
    announce(settings, release)


def settings_of_run(kafka: KafkaSettings, run: str, folder: Path, partitions: int) -> Settings:
    """Settings of a run with topics and a group of its own; only the release is shared."""
    settings = Settings(
        kafka=kafka,
        topics=TopicSettings(
            interactions=run,
            recommendations=f"{run}-out",
            dead_letters=f"{run}-dead",
            users=f"{run}-users",
            partitions=partitions,
        ),
        # one thread each: two workers share the machine
        worker=WorkerSettings(app_id=run, data_dir=folder / run / "worker", threads=1),
    )
    create_topics(settings)
    return settings


def timed_lines(log: str) -> Iterator[tuple[float, str]]:
    """Every line that bears a time, with its Unix time."""
    for line in log.splitlines():
        moment, _, text = line.partition(" ")
        if re.match(r"\d{4}-\d\d-\d\dT", moment):
            yield datetime.fromisoformat(moment).timestamp(), text


class Group:
    """Workers by name, each with a folder and a log of its own.

    Args:
        settings: Of all of them.
        static: Whether each has a fixed name in Kafka's group.
    """

    def __init__(self, settings: Settings, *, static: bool = False) -> None:
        self._settings = settings
        self._static = static
        self._read_from: dict[str, int] = {}
        self._logs: dict[str, Path] = {}
        self.workers: dict[str, WorkerProcess] = {}

    def start(self, name: str) -> WorkerProcess:
        """Start one; it may have been there before."""
        settings = self._settings
        folder = settings.worker.data_dir.parent / name / "worker"
        worker = WorkerProcess(
            replace(
                settings,
                kafka=replace(
                    settings.kafka, group_instance_id=f"bench-{name}" if self._static else None
                ),
                worker=replace(settings.worker, data_dir=folder),
                metrics=MetricsSettings(port=free_port()),
            )
        )
        self.workers[name] = worker
        self._read_from[name] = len(worker.log())
        self._logs[name] = worker.log_file
        return worker

    def end(self, name: str, number: int) -> None:
        """Send one a signal and wait until it is gone."""
        worker = self.workers.pop(name)
        worker.process.send_signal(number)
        worker.wait()

    def _assignments(self, name: str) -> list[tuple[str, str, str]]:
        """Partitions kept, partitions gained and seconds of every assignment since its start."""
        return FLOWS.findall(self.workers[name].log()[self._read_from[name] :])

    def partitions(self, name: str) -> set[int]:
        """What flows at a worker, by its log; nothing yet: the empty set."""
        for kept, gained, _ in self._assignments(name)[-1:]:
            return {int(number) for part in (kept, gained) for number in part.split(",") if number}
        return set()

    def assignment_s(self, name: str) -> float:
        """How long a worker's last assignment took, from Kafka's word until all flowed."""
        return float(self._assignments(name)[-1][2])

    def spoke_at_s(self, name: str) -> float:
        """When a worker had loaded everything and turned to Kafka, Unix time."""
        lines = timed_lines(self.workers[name].log()[self._read_from[name] :])
        return next(moment for moment, line in lines if SPEAKS_TO_KAFKA in line)

    def owners(self) -> dict[int, str]:
        """Who has which partition."""
        return {number: name for name in self.workers for number in self.partitions(name)}

    def wait_until_all_flow(self) -> None:
        """Wait until every partition flows at one of them, and something flows at each."""
        count = self._settings.topics.partitions

        def all_flow() -> bool:
            for name, worker in self.workers.items():
                assert worker.process.poll() is None, f"{name} ended:\n{worker.log()[-3000:]}"
            shares = [self.partitions(name) for name in self.workers]
            return all(shares) and sum(map(len, shares)) == count == len(set().union(*shares))

        wait_until(all_flow, "all partitions flow", FLOW_DEADLINE_S)

    def log_lines(self, since_s: float) -> list[str]:
        """What all, also those that are gone, have said since then, by seconds from then on."""
        return sorted(
            f"{moment - since_s:7.3f} {name} {line}"
            for name, file in self._logs.items()
            for moment, line in timed_lines(file.read_text(errors="replace"))
            if moment >= since_s
        )

    def kill_all(self) -> None:
        """Leave none behind."""
        for worker in self.workers.values():
            if worker.process.poll() is None:
                worker.kill()
        self.workers.clear()


@contextmanager
def group_of(settings: Settings, names: Sequence[str], *, static: bool = False) -> Iterator[Group]:
    """Workers that all flow; gone at the end, however it ends."""
    group = Group(settings, static=static)
    try:
        for name in names:
            group.start(name)
        group.wait_until_all_flow()
        yield group
    except Exception:
        for name, worker in group.workers.items():
            if (code := worker.process.poll()) is not None:
                print(f"{name} ended by itself with {code}:\n{worker.log()[-3000:]}")
        raise
    finally:
        group.kill_all()
