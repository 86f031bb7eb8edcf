"""`lrurec trainer` on a real Kafka: trains when due, alone, through outages, until told to stop."""

import dataclasses
import os
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from datetime import datetime
from itertools import pairwise
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

import pytest
from prometheus_client import CollectorRegistry

from models.errors import ReleaseError
from models.manifest import Manifest
from pipeline.cluster import broker
from pipeline.cluster.topics import create_topics
from pipeline.errors import BrokerUnavailable, FolderUnusable
from pipeline.metrics import TrainerMetrics
from pipeline.settings import MetricsSettings, Settings, TrainerSettings, settings_flags
from pipeline.training import job
from pipeline.training.folder import TrainingFolder, manifests, release_versions
from pipeline.training.job import T, train_release
from pipeline.training.trainer import WATCH_S, StopRequest, Trainer, TrainerStopped
from pipeline.users import forget
from pipeline.worker.releases import read_announcements
from tests.kafka import admin_client, unique_settings, wait_until
from tests.ring_world import QUICK, USELESS, ring_settings, send_events, send_walks, walks

ENDLESS = dataclasses.replace(QUICK, max_epochs=100_000, patience=100_000)


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Topics, a trainer that waits for 100 new events after the first training, and metrics."""
    return eager(ring_settings(settings))


def eager(settings: Settings, **changes: object) -> Settings:
    trainer = dataclasses.replace(settings.trainer, period_s=None, min_new_events=100)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return dataclasses.replace(
        settings,
        trainer=dataclasses.replace(trainer, **changes),
        metrics=MetricsSettings(port=port),
    )


class TrainerProcess:
    """A trainer's process and its log."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.log_file = settings.worker.data_dir.parent / f"{name}.log"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "trainer", *settings_flags(settings)],
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def metric(self, name: str) -> float | None:
        """The value of one series; None while nothing answers."""
        try:
            url = f"http://127.0.0.1:{self.settings.metrics.port}/metrics"
            with urlopen(url, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (URLError, OSError):
            return None
        (value,) = [line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")]
        return float(value)

    def wait(self, condition: Callable[[], object], what: str, deadline_s: float = 60.0) -> None:
        """Wait while the trainer lives."""

        def holds() -> object:
            assert self.process.poll() is None, self.log()[-3000:]
            return condition()

        try:
            wait_until(holds, what, deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from error

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def running_trainer(settings: Settings, name: str = "trainer") -> Iterator[TrainerProcess]:
    """A trainer that is gone at the end, however the test ends."""
    trainer = TrainerProcess(settings, name)
    try:
        yield trainer
    finally:
        if trainer.process.poll() is None:
            trainer.process.kill()
            trainer.process.wait(10)


def announced(settings: Settings) -> list[int]:
    return [announcement.version for _, announcement in read_announcements(settings)]


def releases(settings: Settings) -> list[Manifest]:
    return list(reversed(list(manifests(settings.trainer.releases_dir))))


def test_it_trains_again_after_new_events_and_stops_when_told(world: Settings) -> None:
    """First as soon as there are events, then after enough new ones; SIGTERM ends it with 0."""
    first = send_walks(world, users=60)
    with running_trainer(world) as trainer:
        trainer.wait(lambda: announced(world) == [1], "the first release")
        send_walks(world, users=60, seed=1)
        trainer.wait(lambda: announced(world) == [1, 2], "the second release")
        send_walks(world, users=3, seed=2)
        released = trainer.metric('lrurec_train_runs_total{result="released"}')
        recall = trainer.metric('lrurec_train_recall_ratio{method="model"}')
        steps = trainer.metric("lrurec_train_steps_total")
        code = trainer.stop()

    with running_trainer(world, "again") as trainer:
        trainer.wait(lambda: trainer.metric("lrurec_train_steps_total") == 0, "its start")
        time.sleep(3)
        again = trainer.metric("lrurec_train_steps_total")
        code_again = trainer.stop()

    events = [manifest.training["data"]["events"] for manifest in releases(world)]
    assert (code, code_again) == (0, 0)
    assert events[0] == first
    assert events[1] >= first + 100
    assert released == 2
    assert recall is not None
    assert recall > 0.8
    assert steps is not None
    assert steps > 0
    assert again == 0  # three users are too little news, and a restart does not forget
    assert release_versions(world.trainer.releases_dir) == [1, 2]


def test_two_trainers_take_turns(world: Settings) -> None:
    """On one folder of releases trainings never overlap, and none is done twice."""
    first = eager(world, min_new_events=300)  # more than half of what comes at once
    second = eager(world, min_new_events=300)
    send_walks(world, users=60)
    with running_trainer(first, "one") as one, running_trainer(second, "two") as two:
        one.wait(lambda: announced(world) == [1], "the first release")
        send_walks(world, users=60, seed=1)
        one.wait(lambda: announced(world) == [1, 2], "the second release")
        send_walks(world, users=60, seed=2)
        one.wait(lambda: announced(world) == [1, 2, 3], "the third release")
        assert two.process.poll() is None
        codes = one.stop(), two.stop()

    spans = [
        (manifest.training["started_s"], datetime.fromisoformat(manifest.created).timestamp())
        for manifest in releases(world)
    ]
    assert codes == (0, 0)
    assert announced(world) == [1, 2, 3]
    assert all(end <= start for (_, end), (start, _) in pairwise(spans))


def test_a_training_elsewhere_is_waited_for(world: Settings) -> None:
    """While another process holds the folder a trainer that is due only waits."""
    send_walks(world, users=60)
    with TrainingFolder(world.trainer.releases_dir).locked(), running_trainer(world) as trainer:
        trainer.wait(lambda: "waiting for it" in trainer.log(), "a vain try")
        time.sleep(3 * WATCH_S)
        assert trainer.log().count("waiting for it") == 1  # every vain try
        steps = trainer.metric("lrurec_train_steps_total")
        trainer.stop()

    assert steps == 0
    assert f"another training runs there (process {os.getpid()})" in trainer.log()
    assert announced(world) == []


def test_a_release_that_another_made_is_the_newest_to_a_trainer_that_waits(world: Settings) -> None:
    """Else its age would grow, and the alert on it would fire, while fresh ones serve."""
    send_walks(world, users=60)
    train_release(world)
    name = "lrurec_train_last_release_timestamp_seconds"
    with running_trainer(world) as trainer:
        trainer.wait(lambda: trainer.metric(name), "the release from before its start")
        before_s = trainer.metric(name)

        train_release(world)

        trainer.wait(lambda: trainer.metric(name) != before_s, "the release of another")
        steps = trainer.metric("lrurec_train_steps_total")
        noted_s = trainer.metric(name)

    first, second = (datetime.fromisoformat(one.created).timestamp() for one in releases(world))
    assert (before_s, noted_s) == (first, second)
    assert steps == 0


def test_too_few_events_are_waited_for(world: Settings) -> None:
    """What cannot train a model yet is looked at again when there is twice as much."""
    with running_trainer(world) as trainer:
        send_events(world, [(0, {"user_id": "anna", "item_id": "a"})])
        trainer.wait(lambda: "waiting for more" in trainer.log(), "a vain look", 60)
        trainer.wait(lambda: "waiting for any event" in trainer.log(), "why", 60)
        send_walks(world, users=60)
        trainer.wait(lambda: announced(world) == [1], "the release")
        failed = trainer.metric('lrurec_train_runs_total{result="failed"}')

    assert failed == 0


def test_a_stop_in_the_middle_of_a_training_is_quick_and_resumed(world: Settings) -> None:
    """SIGTERM ends a training after a step; the next start goes on from the last validation."""
    endless = dataclasses.replace(world, training=ENDLESS)
    send_walks(world, users=60)
    folder = TrainingFolder(world.trainer.releases_dir)
    with running_trainer(endless) as trainer:
        trainer.wait(folder.checkpoint.exists, "the first validation")
        started = time.monotonic()
        code = trainer.stop()
        seconds = time.monotonic() - started

    short = dataclasses.replace(world, training=dataclasses.replace(ENDLESS, max_epochs=1))
    with running_trainer(short, "resumed") as trainer:
        trainer.wait(lambda: announced(world) == [1], "the release")
        trainer.stop()
        log = trainer.log()

    (manifest,) = releases(world)
    assert code == 0
    assert seconds < 5
    assert "going on with the training that was interrupted" in log
    assert manifest.training["epochs"] >= 1
    assert not folder.checkpoint.exists()


def test_a_trainer_that_waits_goes_on_where_one_was_killed(world: Settings) -> None:
    """Several trainers on one folder: hours of a training are not lost with its process."""
    send_walks(world, users=60)
    folder = TrainingFolder(world.trainer.releases_dir)
    short = eager(world, min_new_events=100)
    short = dataclasses.replace(short, training=dataclasses.replace(ENDLESS, max_epochs=1))
    with running_trainer(dataclasses.replace(world, training=ENDLESS), "one") as one:
        one.wait(folder.checkpoint.exists, "the first validation")
        with running_trainer(short, "two") as two:
            two.wait(lambda: "waiting for it" in two.log(), "a vain try")
            one.process.kill()
            two.wait(lambda: announced(world) == [1], "the release")
            two.stop()

    assert "going on with the training that was interrupted" in two.log()
    assert not folder.checkpoint.exists()


@pytest.mark.parametrize(
    "error",
    [
        ReleaseError("no space left on device"),
        FolderUnusable("the share is read-only"),
    ],
)
def test_a_training_whose_release_cannot_be_written_is_not_lost(
    world: Settings,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    error: Exception,
) -> None:
    """The trainer lives, and when one is due again it goes on with what is done already."""
    caplog.set_level("INFO")
    first = send_walks(world, users=60)

    def refuse(*_: object, **__: object) -> None:
        monkeypatch.undo()
        raise error

    def pause(trainer: Trainer, _seconds: float) -> None:
        if announced(world):
            raise TrainerStopped(0)
        send_walks(world, users=60, seed=1)

    monkeypatch.setattr(job, "write_release", refuse)
    registry = CollectorRegistry()
    with pytest.raises(TrainerStopped):
        Waiting(world, TrainerMetrics(registry), StopRequest(), pause).run()

    assert registry.get_sample_value("lrurec_train_runs_total", {"result": "failed"}) == 1
    assert "going on with the training that was interrupted" in caplog.text
    assert releases(world)[0].training["data"]["events"] == first


class Waiting(Trainer):
    """One that does something else while it would wait."""

    def __init__(
        self,
        settings: Settings,
        metrics: TrainerMetrics,
        stop: StopRequest,
        pause: Callable[[Trainer, float], None],
    ) -> None:
        super().__init__(settings, metrics, stop)
        self._pause = pause

    def _wait(self, seconds: float) -> None:
        self._pause(self, seconds)


def test_a_training_that_learned_what_is_forgotten_now_is_begun_anew(
    world: Settings,
    run_to_first_pause: Callable[[Settings], CollectorRegistry],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """The next start neither goes on with it nor stops at it, and advises no flag it lacks."""
    send_walks(world, users=60)
    checkpoint = TrainingFolder(world.trainer.releases_dir).checkpoint

    def interrupt(_: object) -> None:
        if checkpoint.exists():
            raise KeyboardInterrupt

    with pytest.raises(KeyboardInterrupt):
        train_release(world, interrupt)
    user, steps = walks(60)[0]
    forget(world, user, time.time_ns() // 1_000_000)

    run_to_first_pause(world)

    (manifest,) = releases(world)
    assert announced(world) == [1]
    assert manifest.training["data"]["events_forgotten"] == len(steps)
    assert not checkpoint.exists()
    assert "it learned from other interactions" in caplog.text
    assert "--resume" not in caplog.text


def leave_unannounced(settings: Settings) -> None:
    """Train, and lose Kafka between the writing of the release and its announcement."""

    def break_at_the_end(action: Callable[[], T]) -> T:
        if release_versions(settings.trainer.releases_dir):
            raise BrokerUnavailable("gone")
        return action()

    send_walks(settings, users=60)
    with pytest.raises(BrokerUnavailable):
        train_release(settings, ask_broker=break_at_the_end)


@pytest.fixture
def run_to_first_pause(monkeypatch: pytest.MonkeyPatch) -> Callable[[Settings], CollectorRegistry]:
    """Runs a trainer in this process until it has nothing to do; gives what it measured."""

    def pause(_: Trainer, _seconds: float) -> None:
        raise TrainerStopped(0)

    def run(settings: Settings) -> CollectorRegistry:
        registry = CollectorRegistry()
        with pytest.raises(TrainerStopped):
            Trainer(settings, TrainerMetrics(registry), StopRequest()).run()
        return registry

    monkeypatch.setattr(Trainer, "_wait", pause)
    return run


def test_a_release_that_was_not_announced_is_announced_at_the_next_start(
    world: Settings,
    run_to_first_pause: Callable[[Settings], CollectorRegistry],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """A trainer that ends between writing a release and announcing it loses nothing."""
    leave_unannounced(world)
    before = announced(world)

    registry = run_to_first_pause(world)

    (manifest,) = releases(world)
    assert before == []
    assert f"announce it: lrurec announce {world.trainer.releases_dir / '1'}" in caplog.text
    assert announced(world) == [1]
    assert release_versions(world.trainer.releases_dir) == [1]
    # Its age is known to alerts from the start on, Kafka or none.
    away = dataclasses.replace(world.kafka, bootstrap_servers="127.0.0.1:9", connect_timeout_s=0.1)
    for known in (registry, run_to_first_pause(dataclasses.replace(world, kafka=away))):
        made_s = known.get_sample_value("lrurec_train_last_release_timestamp_seconds")
        assert made_s == datetime.fromisoformat(manifest.created).timestamp()


def test_a_release_of_another_topic_is_never_announced(
    world: Settings, tmp_path: Path, run_to_first_pause: Callable[[Settings], CollectorRegistry]
) -> None:
    """Neither to another shop's workers, nor to those of a topic that was made anew."""
    leave_unannounced(world)
    other = eager(ring_settings(unique_settings(world.kafka.bootstrap_servers, tmp_path)))
    assert other.trainer.releases_dir == world.trainer.releases_dir

    registry = run_to_first_pause(other)
    topic = world.topics.interactions
    with admin_client(world.kafka.bootstrap_servers) as admin:
        admin.delete_topics([topic])
        wait_until(lambda: topic not in admin.list_topics(), "its end")
    create_topics(world)
    run_to_first_pause(world)

    assert registry.get_sample_value("lrurec_train_last_release_timestamp_seconds") == 0
    assert (announced(other), announced(world)) == ([], [])


def test_a_damaged_release_that_was_not_announced_keeps_no_trainer_from_its_work(
    world: Settings,
    run_to_first_pause: Callable[[Settings], CollectorRegistry],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is passed over with a line, and the next training makes another."""
    leave_unannounced(world)
    (world.trainer.releases_dir / "1" / "weights.safetensors").unlink()
    send_walks(world, users=60, seed=1)

    run_to_first_pause(world)

    assert "it was not announced, and will not be" in caplog.text
    assert announced(world) == [2]


def test_a_refused_release_is_none_to_the_alert_on_its_age(
    world: Settings, run_to_first_pause: Callable[[Settings], CollectorRegistry]
) -> None:
    """A gate that refuses for weeks must not look like fresh releases."""
    send_walks(world, users=60)
    train_release(world)
    send_walks(world, users=60, seed=1)

    registry = run_to_first_pause(dataclasses.replace(world, training=USELESS))

    first, second = releases(world)
    made_s = registry.get_sample_value("lrurec_train_last_release_timestamp_seconds")
    assert second.training["refused"]
    assert registry.get_sample_value("lrurec_train_runs_total", {"result": "rejected"}) == 1
    assert made_s == datetime.fromisoformat(first.created).timestamp()
    loss = registry.get_sample_value("lrurec_train_loss")
    assert loss is not None
    assert 1 < loss < 10


def test_a_broker_that_goes_away_and_comes_back_is_survived(tmp_path: Path) -> None:
    """Without Kafka the trainer waits; when it is back, training goes on where it was due."""
    own = unique_settings("127.0.0.1:1", tmp_path)
    with broker.running_broker(own.broker) as info:
        port = int(info.address.rpartition(":")[2])
        own = dataclasses.replace(
            own,
            kafka=dataclasses.replace(
                own.kafka, bootstrap_servers=info.address, connect_timeout_s=1.0
            ),
            broker=dataclasses.replace(own.broker, port=port),
        )
        world = eager(ring_settings(own))
        send_walks(world, users=60)
        with running_trainer(world) as trainer:
            trainer.wait(lambda: announced(world) == [1], "the first release")
            broker.stop(own.broker)
            trainer.wait(lambda: "trying again" in trainer.log(), "a try in vain")
            broker.start(own.broker)
            send_walks(world, users=60, seed=1)
            trainer.wait(lambda: announced(world) == [1, 2], "the second release", 90)
            code = trainer.stop()

    assert code == 0


def test_a_trainer_that_would_never_train_is_refused(settings: Settings) -> None:
    """Without a period and a number of events there is nothing to wait for."""
    never = dataclasses.replace(
        settings,
        trainer=TrainerSettings(
            releases_dir=settings.trainer.releases_dir, period_s=None, min_new_events=None
        ),
    )

    ended = subprocess.run(
        [sys.executable, "-m", "pipeline", "trainer", *settings_flags(never)],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert ended.returncode == 2
    assert "trainer.period_s or trainer.min_new_events must be set" in ended.stderr
