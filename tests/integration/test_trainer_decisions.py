"""What a trainer in this process does with what it finds, on a real Kafka."""

import dataclasses
import time
from collections.abc import Callable
from datetime import datetime
from pathlib import Path

import pytest
from prometheus_client import CollectorRegistry

from models.errors import ReleaseError
from pipeline.cluster.topics import create_topics
from pipeline.errors import BrokerUnavailable, FolderUnusable
from pipeline.metrics import TrainerMetrics
from pipeline.settings import Settings
from pipeline.training import job
from pipeline.training.folder import TrainingFolder, release_versions
from pipeline.training.job import T, train_release
from pipeline.training.trainer import StopRequest, Trainer, TrainerStopped
from pipeline.users import forget
from tests.kafka import admin_client, unique_settings, wait_until
from tests.ring_world import USELESS, ring_settings, send_walks, walks
from tests.trainer_process import announced, eager, releases


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Topics, a trainer that waits for 100 new events after the first training, and metrics."""
    return eager(ring_settings(settings))


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
