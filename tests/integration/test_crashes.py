"""kill -9 of a real worker, at every stage and at random, disk kept or wiped; `verify` judges.

Each case: events and broken records flow all the time, the worker dies (once or many times), starts
again, catches up; then every state, offset, dead letter and recommendation is held against the log.
"""

import dataclasses
import random
import shutil
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest

from pipeline.cluster.broker import running_broker
from pipeline.cluster.topics import create_topics
from pipeline.settings import MetricsSettings, Settings
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.kafka import committed_lag, free_port, send, unique_settings, wait_until
from tests.releases import random_release
from tests.worker_process import WorkerProcess, running_worker

ITEMS = [f"item-{i}" for i in range(40)]
STAGES = ("computed", "sent", "rows-sent", "committed", "written", "acknowledged")
BATCH_EVENTS = 40  # small, so that a crash falls between many of them
SESSION_S = 4.0  # how long the others wait for one that was killed


def prepare(settings: Settings) -> Settings:
    """Topics, a release, a port for metrics, and batches so small that there are many."""
    own = dataclasses.replace(
        settings,
        metrics=MetricsSettings(port=free_port()),
        worker=dataclasses.replace(settings.worker, batch_events=BATCH_EVENTS),
        kafka=dataclasses.replace(settings.kafka, session_timeout_s=SESSION_S),
    )
    create_topics(own)
    announce(own, random_release(own.trainer.releases_dir, ITEMS))
    return own


@pytest.fixture
def stream(settings: Settings) -> Settings:
    return prepare(settings)


def produce(settings: Settings, seed: int, n: int = 400) -> None:
    """Send n events of 30 users, some with ids that repeat, and a broken record now and then."""
    rng = random.Random(seed)
    records = []
    for i in range(n):
        user = rng.randrange(30)
        event = {
            "user_id": f"user-{user}",
            "item_id": rng.choice([*ITEMS, "unheard-of"]),
            "timestamp_ms": 1_700_000_000_000 + i,
        }
        if rng.random() < 0.3:
            event["event_id"] = f"event-{seed}-{rng.randrange(n)}"
        value = msgspec.json.encode(event) if rng.random() < 0.97 else b"broken %d" % i
        records.append((user % 4, b"user-%d" % user, value))
    send(settings.kafka.bootstrap_servers, settings.topics.interactions, records)


def assert_all_promises_hold(settings: Settings) -> None:
    report = verify(settings)
    assert report.holds, report
    assert report.offsets.missing == report.offsets.pending == 0
    assert report.states > 0


def assert_nothing_committed_is_wrong(settings: Settings) -> None:
    """Right after a crash: whatever was committed is there, and nothing there is wrong."""
    report = verify(settings)
    assert report.holds, report


def finish(settings: Settings) -> None:
    """Run a worker until all is committed, and stop it."""
    with running_worker(settings) as worker:
        wait_until(lambda: committed_lag(settings) == 0, "everything committed", deadline_s=60)
        assert worker.stop() == 0


def wipe_disk(settings: Settings) -> None:
    shutil.rmtree(settings.worker.data_dir)


@pytest.mark.parametrize("wiped", [False, True], ids=["disk-kept", "disk-wiped"])
def test_kills_at_every_stage_lose_and_double_nothing(stream: Settings, wiped: bool) -> None:
    """Whatever was already sent or written when it died, the next worker makes it exact."""
    for number, stage in enumerate(STAGES):
        produce(stream, seed=number)
        with running_worker(stream, die_at=f"{stage}:3") as worker:
            assert worker.wait() == -signal.SIGKILL, worker.log()[-3000:]
        assert_nothing_committed_is_wrong(stream)
        if wiped:
            wipe_disk(stream)
    produce(stream, seed=99, n=100)

    finish(stream)

    assert_all_promises_hold(stream)


def test_four_kills_at_random_moments_lose_and_double_nothing(stream: Settings) -> None:
    """Under a steady flow, with the disk wiped after every other kill."""
    rng = random.Random(7)
    for number in range(4):
        produce(stream, seed=10 + number, n=200)
        with running_worker(stream) as worker:
            worker.wait_until_ready()
            produce(stream, seed=100 + number, n=200)
            time.sleep(rng.uniform(0.0, 0.4))
            worker.kill()
        assert_nothing_committed_is_wrong(stream)
        if number % 2:
            wipe_disk(stream)

    finish(stream)

    assert_all_promises_hold(stream)


def test_sigterm_in_the_middle_of_work_is_a_clean_stop(stream: Settings) -> None:
    """It ends with 0 within its deadline, and what it had begun is either whole or read again."""
    produce(stream, seed=1, n=4000)
    with running_worker(stream) as worker:
        wait_until(lambda: 0 < committed_lag(stream) < 4000 or committed_lag(stream) == 0, "work")
        started_s = time.monotonic()
        assert worker.stop() == 0
        assert time.monotonic() - started_s < 10
    produce(stream, seed=2, n=100)

    finish(stream)

    assert_all_promises_hold(stream)


@pytest.fixture
def restartable(tmp_path: Path) -> Iterator[tuple[Settings, "Broker"]]:
    """A broker of this test alone, which may be stopped and started."""
    broker = Broker(tmp_path / "kafka")
    try:
        yield prepare(unique_settings(broker.address, tmp_path)), broker
    finally:
        broker.stop()


class Broker:
    """A real Kafka that keeps its address and data over a restart."""

    def __init__(self, folder: Path) -> None:
        from pipeline.settings import BrokerSettings

        self._settings = BrokerSettings(data_dir=folder, port=free_port())
        self._context = running_broker(self._settings)
        self.address = self._context.__enter__().address

    def stop(self) -> None:
        self._context.__exit__(None, None, None)

    def start(self) -> None:
        self._context = running_broker(self._settings)
        self._context.__enter__()


def test_a_broker_restart_loses_and_doubles_nothing(
    restartable: tuple[Settings, Broker],
) -> None:
    """The worker lives through it, or ends with a line and goes on when it is started again."""
    settings, broker = restartable
    produce(settings, seed=1)
    worker: WorkerProcess
    with running_worker(settings) as worker:
        worker.wait_until_ready()
        produce(settings, seed=2)
        broker.stop()
        time.sleep(3)
        broker.start()
        produce(settings, seed=3)
        deadline = time.monotonic() + 60
        while committed_lag(settings) and time.monotonic() < deadline:
            if worker.process.poll() is not None:
                break
            time.sleep(0.2)
        if worker.process.poll() is None:
            assert worker.stop() == 0

    if committed_lag(settings):
        finish(settings)
    assert_all_promises_hold(settings)
