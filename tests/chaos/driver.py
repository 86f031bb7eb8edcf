"""A seeded storm of real worker processes on a real Kafka, judged by `lrurec verify`.

    python -m tests.chaos.driver [--minutes M] [--seed S] [--workers N] [--keep]

A producer never rests; meanwhile workers join, are told to stop, are killed, freeze beyond their
session and wake up, lose their disks, and the broker restarts, in an order that the seed decides.
In the end one worker catches up and every state, offset, dead letter and recommendation is held
against the log. A failure prints the seed, and the same seed plays the same storm.
"""

import argparse
import dataclasses
import random
import shutil
import signal
import sys
import tempfile
import threading
import time
from collections import Counter
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path

import msgspec

from pipeline.cluster.broker import running_broker
from pipeline.cluster.topics import create_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import BrokerSettings, MetricsSettings, Settings
from pipeline.verification.report import VerifyReport
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.kafka import committed_lag, free_port, send, unique_settings, wait_until
from tests.releases import random_release
from tests.worker_process import WorkerProcess

ITEMS = [f"item-{i}" for i in range(60)]
USERS = 200
SESSION_S = 4.0
REBALANCE_S = 10.0
EVENTS_PER_S = 400
BATCH_EVENTS = 100
# How a worker may end: told to, or because it was frozen, lost its partitions, or Kafka was away.
EXPECTED_EXITS = {0, ExitCode.FROZEN, ExitCode.CHECKPOINT, ExitCode.KAFKA, -signal.SIGTERM}
NO_KAFKA_AT_START = 1


@dataclass
class Storm:
    """What happened, for the report.

    Attributes:
        seed: Decides everything that is random.
        actions: How often each thing was done.
        odd_exits: Exit codes that no worker should have ended with.
        report: The judge's word.
        recovery_s: How long the last worker took to catch up.
    """

    seed: int
    actions: Counter[str] = field(default_factory=Counter)
    odd_exits: list[int] = field(default_factory=list)
    report: VerifyReport | None = None
    recovery_s: float = 0.0

    @property
    def holds(self) -> bool:
        """Whether every promise held."""
        report = self.report
        return (
            report is not None
            and report.holds
            and not self.odd_exits
            and report.offsets.pending == 0
        )


class Producer(threading.Thread):
    """Sends events, some with ids that repeat, and broken records, without rest."""

    def __init__(self, settings: Settings, seed: int) -> None:
        super().__init__(name="producer", daemon=True)
        self._settings = settings
        self._rng = random.Random(seed)
        self._stopping = threading.Event()
        self._sent = 0

    def run(self) -> None:
        while not self._stopping.wait(0.25):
            self.send_some(EVENTS_PER_S // 4)

    def stop(self) -> None:
        self._stopping.set()
        self.join()

    def send_some(self, n: int) -> None:
        rng, records = self._rng, []
        for _ in range(n):
            self._sent += 1
            user = min(USERS - 1, int(rng.expovariate(0.02)))
            event = {
                "user_id": f"user-{user}",
                "item_id": rng.choice(ITEMS),
                "timestamp_ms": 1_700_000_000_000 + self._sent,
            }
            if rng.random() < 0.2:
                event["event_id"] = f"event-{rng.randrange(self._sent)}"
            value = msgspec.json.encode(event) if rng.random() < 0.995 else b"broken"
            partition = user % self._settings.topics.partitions
            records.append((partition, b"user-%d" % user, value))
        kafka = self._settings.kafka.bootstrap_servers
        send(kafka, self._settings.topics.interactions, records)


class Fleet:
    """The workers, each with its own folder and port; some frozen, some gone."""

    def __init__(self, settings: Settings, folder: Path, storm: Storm) -> None:
        self._settings = settings
        self._folder = folder
        self._storm = storm
        self._made = 0
        self.running: list[WorkerProcess] = []
        self.frozen: list[tuple[float, WorkerProcess]] = []

    def join(self, name: str | None = None) -> WorkerProcess:
        """Start a worker, on a new folder or on that of one before it."""
        if name is None:
            self._made += 1
            name = f"w{self._made}"
        settings = dataclasses.replace(
            self._settings,
            metrics=MetricsSettings(port=free_port()),
            worker=dataclasses.replace(
                self._settings.worker, data_dir=self._folder / name / "worker"
            ),
        )
        worker = WorkerProcess(settings)
        self.running.append(worker)
        return worker

    def reap(self) -> None:
        """Take note of workers that ended by themselves."""
        for worker in list(self.running):
            code = worker.process.poll()
            if code is not None:
                self.running.remove(worker)
                self.note_exit(worker, code)

    def note_exit(self, worker: WorkerProcess, code: int) -> None:
        self._storm.actions[f"exit {code}"] += 1
        if code == NO_KAFKA_AT_START and "no Kafka within" in worker.log():
            return
        if code not in EXPECTED_EXITS:
            self._storm.odd_exits.append(code)
            print(f"worker ended with {code}:\n{worker.log()[-3000:]}", file=sys.stderr)

    def leave(self, worker: WorkerProcess) -> None:
        self.running.remove(worker)
        self.note_exit(worker, worker.stop(timeout_s=60))

    def kill(self, worker: WorkerProcess) -> None:
        self.running.remove(worker)
        worker.kill()

    def freeze(self, worker: WorkerProcess, seconds: float) -> None:
        self.running.remove(worker)
        worker.process.send_signal(signal.SIGSTOP)
        self.frozen.append((time.monotonic() + seconds, worker))

    def thaw(self, *, everyone: bool = False) -> None:
        """Wake those whose time has come; a worker frozen for too long ends by itself."""
        for until_s, worker in list(self.frozen):
            if everyone or time.monotonic() >= until_s:
                self.frozen.remove((until_s, worker))
                worker.process.send_signal(signal.SIGCONT)
                self.running.append(worker)

    def end_all(self) -> None:
        self.thaw(everyone=True)
        for worker in list(self.running):
            if worker.process.poll() is None:
                worker.kill()
        self.running.clear()

    def name_of(self, worker: WorkerProcess) -> str:
        return worker.settings.worker.data_dir.parent.name


def play(
    *,
    seed: int,
    seconds: float,
    workers: int,
    folder: Path,
    restarts: bool = True,
    say: Callable[[str], None] = print,
) -> Storm:
    """Play one storm and judge it.

    Args:
        seed: Decides who is hit by what, and when.
        seconds: How long the storm lasts; catching up and judging come on top.
        workers: How many there should be at the most.
        folder: For everything on disk.
        restarts: Whether the broker is restarted, too.
        say: Is told each thing that is done.
    """
    storm, rng = Storm(seed), random.Random(seed)
    broker_settings = BrokerSettings(data_dir=folder / "kafka", port=free_port())
    broker = running_broker(broker_settings)
    settings = _settings(broker.__enter__().address, folder)
    create_topics(settings)
    announce(settings, random_release(settings.trainer.releases_dir, ITEMS))
    fleet = Fleet(settings, folder, storm)
    producer = Producer(settings, seed)
    producer.send_some(1000)
    producer.start()
    ends_s = time.monotonic() + seconds
    folders: list[str] = []
    versions = 1
    try:
        while time.monotonic() < ends_s:
            fleet.reap()
            fleet.thaw()
            choices = ["join"] * (3 if len(fleet.running) < workers else 0)
            if fleet.running:
                choices += ["leave", "kill", "freeze", "nap"]
                choices += ["kill-and-wipe", "swap"]
            if restarts and rng.random() < 0.05:
                choices = ["restart-broker"]
            action = rng.choice(choices or ["wait"])
            storm.actions[action] += 1
            worker = rng.choice(fleet.running) if fleet.running else None
            say(f"{action} ({len(fleet.running)} running, {len(fleet.frozen)} frozen)")
            if action == "join":
                old = (
                    folders.pop(rng.randrange(len(folders)))
                    if folders and rng.random() < 0.7
                    else None
                )
                fleet.join(old)
            elif action == "restart-broker":
                producer.stop()
                broker.__exit__(None, None, None)
                time.sleep(rng.uniform(0.0, 3.0))
                broker = running_broker(broker_settings)
                broker.__enter__()
                producer = Producer(settings, rng.randrange(1 << 30))
                producer.start()
            elif action == "swap":
                versions += 1
                announce(
                    settings,
                    random_release(settings.trainer.releases_dir, ITEMS, version=versions),
                )
            elif worker is not None:
                name = fleet.name_of(worker)
                if action == "leave":
                    fleet.leave(worker)
                    folders.append(name)
                elif action == "kill":
                    fleet.kill(worker)
                    folders.append(name)
                elif action == "kill-and-wipe":
                    fleet.kill(worker)
                    shutil.rmtree(worker.settings.worker.data_dir, ignore_errors=True)
                    folders.append(name)
                elif action == "freeze":
                    fleet.freeze(worker, SESSION_S * rng.uniform(1.2, 2.5))
                elif action == "nap":
                    fleet.freeze(worker, SESSION_S * rng.uniform(0.1, 0.7))
            time.sleep(rng.uniform(0.2, 4.0))
        producer.stop()
        fleet.end_all()
        _finish(settings, fleet, storm)
        storm.report = verify(settings)
    finally:
        producer.stop()
        fleet.end_all()
        broker.__exit__(None, None, None)
    return storm


def _settings(address: str, folder: Path) -> Settings:
    settings = unique_settings(address, folder)
    return dataclasses.replace(
        settings,
        kafka=dataclasses.replace(
            settings.kafka, session_timeout_s=SESSION_S, rebalance_timeout_s=REBALANCE_S
        ),
        worker=dataclasses.replace(settings.worker, batch_events=BATCH_EVENTS),
    )


def _finish(settings: Settings, fleet: Fleet, storm: Storm) -> None:
    """One worker alone catches up and stops."""
    started_s = time.monotonic()
    worker = fleet.join()
    wait_until(lambda: committed_lag(settings) == 0, "everything committed", deadline_s=180)
    storm.recovery_s = time.monotonic() - started_s
    fleet.leave(worker)


def main() -> int:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--minutes", type=float, default=3.0)
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--workers", type=int, default=3)
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    options = parser.parse_args()
    folder = Path(tempfile.mkdtemp(prefix="lrurec-chaos-"))
    print(f"seed {options.seed}, {options.minutes:g} minutes, logs below {folder}")
    storm = play(
        seed=options.seed, seconds=60 * options.minutes, workers=options.workers, folder=folder
    )
    print(dict(storm.actions))
    print(storm.report)
    if not storm.holds:
        print(f"a promise did not hold: make chaos MINUTES={options.minutes:g} SEED={options.seed}")
        return 1
    if not options.keep:
        shutil.rmtree(folder)
    print(f"every promise held, caught up within {storm.recovery_s:.1f} s (seed {options.seed})")
    return 0


if __name__ == "__main__":
    sys.exit(main())
