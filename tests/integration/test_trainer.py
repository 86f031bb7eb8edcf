"""`lrurec trainer` on a real Kafka: trains when due, alone, through outages, until told to stop."""

import dataclasses
import os
import subprocess
import sys
import time
from datetime import datetime
from itertools import pairwise
from pathlib import Path

import pytest

from pipeline.cluster import broker
from pipeline.settings import Settings, TrainerSettings, settings_flags
from pipeline.training.folder import TrainingFolder, release_versions
from pipeline.training.job import train_release
from pipeline.training.trainer import WATCH_S
from tests.kafka import unique_settings
from tests.ring_world import QUICK, ring_settings, send_events, send_walks
from tests.trainer_process import announced, eager, releases, running_trainer

ENDLESS = dataclasses.replace(QUICK, max_epochs=100_000, patience=100_000)


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Topics, a trainer that waits for 100 new events after the first training, and metrics."""
    return eager(ring_settings(settings))


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
