"""`lrurec train` on a real Kafka: learns, judges, announces, goes on where it was killed."""

import dataclasses
import json
import signal
import subprocess
import sys
import time
from collections.abc import Callable
from pathlib import Path

import pytest
import torch

from models.config import TrainingConfig
from models.release import read_release
from models.training.result import TrainingProgress
from pipeline.__main__ import main
from pipeline.errors import BrokerUnavailable, NotEnoughEvents, SwapRejected
from pipeline.settings import Settings, settings_flags
from pipeline.training.folder import TrainingFolder, release_versions
from pipeline.training.job import T, train_release
from pipeline.training.ranges import plan_ranges
from pipeline.training.sequences import read_sequences
from pipeline.users import forget
from pipeline.worker.releases import Announcement, announce, open_announced, read_announcements
from pipeline.worker.served_model import ServedModel, prepare
from tests.kafka import send, wait_until
from tests.releases import random_release
from tests.ring_world import (
    QUICK,
    USELESS,
    item,
    ring_settings,
    send_events,
    send_walks,
    walks,
)


@pytest.fixture
def world(settings: Settings) -> Settings:
    """Topics with the walks of 150 users, and settings that learn them in a second or two."""
    own = ring_settings(settings)
    send_walks(own, users=150)
    return own


def run_train(settings: Settings, *flags: str) -> int:
    return main(["train", *flags, *settings_flags(settings)])


def start_train(settings: Settings, *flags: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-m", "pipeline", "train", *flags, *settings_flags(settings)],
        text=True,
        stderr=subprocess.PIPE,
        stdout=subprocess.PIPE,
    )


def training_as(settings: Settings, training: TrainingConfig) -> Settings:
    return dataclasses.replace(settings, training=training)


def fields_as(settings: Settings, **changes: str) -> Settings:
    return dataclasses.replace(settings, fields=dataclasses.replace(settings.fields, **changes))


def topics_as(settings: Settings, **changes: str) -> Settings:
    return dataclasses.replace(settings, topics=dataclasses.replace(settings.topics, **changes))


def trainer_as(settings: Settings, **changes: object) -> Settings:
    return dataclasses.replace(settings, trainer=dataclasses.replace(settings.trainer, **changes))


def announced(settings: Settings) -> list[Announcement]:
    return [announcement for _, announcement in read_announcements(settings)]


def interrupt_at_a_checkpoint(settings: Settings) -> Path:
    """Train up to the first validation; the checkpoint that is left."""

    def interrupt(_: object) -> None:
        if checkpoint.exists():
            raise KeyboardInterrupt

    checkpoint = TrainingFolder(settings.trainer.releases_dir).checkpoint
    with pytest.raises(KeyboardInterrupt):
        train_release(settings, interrupt)
    return checkpoint


def announce_nowhere(settings: Settings, *versions: int) -> None:
    """Write records to the models topic that announce releases nowhere."""
    rest = b'"location":"/nowhere","manifest_sha256":"00","created":"x"}'
    records = [(0, b"%d" % v, b'{"version":%d,' % v + rest) for v in versions]
    send(settings.kafka.bootstrap_servers, settings.topics.models, records)


def best_five_after(model: ServedModel, item_id: str) -> list[str]:
    """The items that a served model puts first after one item."""
    serving = model.serving
    items = torch.tensor([model.index_of[item_id]])
    _, outputs = serving.advance(serving.init_state(1), items, torch.ones(1, dtype=torch.int64))
    _, best = serving.top_k(outputs, 5)
    return [model.release.vocabulary.item_ids[index - 1] for index in best[0].tolist()]


def test_a_trained_release_beats_popularity_and_serves(world: Settings, tmp_path: Path) -> None:
    """What the topic holds is learned, measured, announced, and a worker can load it."""
    report_file = tmp_path / "report.json"

    code = run_train(world, "--json", str(report_file))

    report = json.loads(report_file.read_text())
    metrics = report["metrics"]["test"]
    (announcement,) = announced(world)
    model = prepare(open_announced(announcement), device="cpu", top_k=5, ring=None)
    assert code == 0
    assert metrics["model"]["recall@10"] > 0.9
    assert metrics["popularity"]["recall@10"] < 0.5
    assert (report["version"], report["announced"], report["refused"]) == (1, True, None)
    assert report["data"]["events"] == sum(len(steps) for _, steps in walks(150))
    assert report["data"]["users"] == 150
    assert announcement.metrics["test"] == metrics
    followed = [item(place + 1) in best_five_after(model, item(place)) for place in range(40)]
    assert sum(followed) > 35


def test_events_count_by_the_worker_s_rules(settings: Settings) -> None:
    """Repeats, other event types and what is no event do not train, and each is counted."""
    own = ring_settings(
        dataclasses.replace(
            settings,
            fields=dataclasses.replace(settings.fields, accepted_event_types=("view",)),
        )
    )

    def click(user: str, item_id: str, **more: object) -> dict[str, object]:
        return {"user_id": user, "item_id": item_id, "event_type": "view", **more}

    events = [
        (0, click("anna", "a", event_id="1")),
        (0, click("bert", "a", event_id="1")),
        (0, click("anna", "b", event_id="2")),
        (0, click("anna", "a", event_id="1")),
        (1, click("anna", "b", event_id="1")),
        (0, {"user_id": "anna", "event_type": "view"}),
        (1, click("anna", "c", event_type="cart")),
        *[(0, click("anna", "b", event_id=str(number))) for number in range(3, 10)],
        (0, click("anna", "a", event_id="1")),  # nine ids later it is news again
    ]
    send_events(own, events)
    send(own.kafka.bootstrap_servers, own.topics.interactions, [(2, b"anna", None)])

    read = read_sequences(own, plan_ranges(own, time.time()))

    names = read.vocabulary.item_ids
    sequences = ["".join(names[index - 1] for index in one) for one in read.sequences]
    assert sequences == ["abbbbbbbba", "a", "b"]
    assert (read.counts.applied, read.counts.duplicate, read.counts.skipped) == (12, 1, 1)
    assert dict(read.counts.dead) == {"missing_item": 1, "null_value": 1}
    assert dict(zip(names, read.vocabulary.counts[1:].tolist(), strict=True)) == {"b": 9, "a": 3}
    assert read.ranges == {0: (0, 13), 1: (0, 2), 2: (0, 1), 3: (0, 0)}


def test_forgotten_events_do_not_train(world: Settings, tmp_path: Path) -> None:
    """Neither they nor items of theirs alone are in the release, and they are counted."""
    events: list[tuple[int, dict[str, object]]] = [
        (0, {"user_id": "anna", "item_id": one}) for one in ("only-anna-s", item(0), item(1))
    ]
    send_events(world, events)
    forget(world, "anna", time.time_ns() // 1_000_000 + 1)
    send_events(world, [(0, {"user_id": "anna", "item_id": item(2)})])
    report_file = tmp_path / "report.json"

    code = run_train(world, "--json", str(report_file))

    data = json.loads(report_file.read_text())["data"]
    release = read_release(world.trainer.releases_dir / "1")
    assert code == 0
    assert (data["events_forgotten"], data["events_duplicate"]) == (3, 0)
    assert data["events"] == sum(len(steps) for _, steps in walks(150)) + 1
    assert data["users"] == 151
    assert release.training["data"] == data
    assert "only-anna-s" not in release.vocabulary.item_ids


def test_a_training_that_learned_what_is_forgotten_now_is_not_resumed(
    world: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """It ends in an error that says what to do; a new one leaves the events out."""
    interrupt_at_a_checkpoint(world)
    user, steps = walks(150)[0]
    forget(world, user, time.time_ns() // 1_000_000)

    codes = run_train(world, "--resume"), run_train(world)

    (line,) = [one for one in capsys.readouterr().err.splitlines() if "lrurec train:" in one]
    assert codes == (1, 0)
    assert "train without --resume to start anew" in line
    assert read_release(world.trainer.releases_dir / "1").training["data"][
        "events_forgotten"
    ] == len(steps)


def test_a_user_without_events_who_is_forgotten_keeps_no_training_from_going_on(
    world: Settings,
) -> None:
    """What it has learned comes of the same data still."""
    interrupt_at_a_checkpoint(world)
    forget(world, "nobody", time.time_ns() // 1_000_000)

    assert run_train(world, "--resume") == 0


def test_rare_items_are_left_out(settings: Settings) -> None:
    """Items below the least count are no part of the vocabulary or of any sequence."""
    own = trainer_as(ring_settings(settings), min_item_count=2)
    pairs = [("anna", "a"), ("bert", "a"), ("anna", "rare"), ("anna", "b"), ("anna", "b")]
    send_events(own, [(0, {"user_id": user, "item_id": one}) for user, one in pairs])

    read = read_sequences(own, plan_ranges(own, time.time()))

    assert read.vocabulary.item_ids == ("a", "b")
    assert [one.tolist() for one in read.sequences] == [[1, 2, 2], [1]]
    assert read.counts.rare == 1


def test_a_window_takes_the_newest_events(settings: Settings) -> None:
    """The last N events come from all partitions alike; the last seconds by the records' time."""
    own = ring_settings(settings)
    send_events(
        own, [(p, {"user_id": f"u{p}", "item_id": f"{i}"}) for p in (0, 1) for i in range(30)]
    )
    send_events(own, [(2, {"user_id": "u2", "item_id": f"{i}"}) for i in range(40)])
    time.sleep(0.05)
    moment_s = time.time()
    send_events(own, [(3, {"user_id": "late", "item_id": "x"})])

    by_number = plan_ranges(trainer_as(own, window_events=20), moment_s)
    by_time = plan_ranges(trainer_as(own, window_s=10.0), moment_s + 10)
    wide = [
        trainer_as(own, window_events=1000, window_s=window_s) for window_s in (1e6, 1e10, 1e300)
    ]
    everything = [plan_ranges(one, moment_s) for one in wide]

    assert by_number == {0: (25, 30), 1: (24, 30), 2: (32, 40), 3: (0, 1)}
    assert by_time == {0: (30, 30), 1: (30, 30), 2: (40, 40), 3: (0, 1)}
    assert everything == [{0: (0, 30), 1: (0, 30), 2: (0, 40), 3: (0, 1)}] * 3


def test_a_worse_release_is_refused_unless_forced(
    world: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """What falls behind the serving release stays on disk, unannounced, and the command says so."""
    useless = training_as(world, USELESS)

    codes = run_train(world), run_train(useless)
    said = capsys.readouterr().err
    forced = run_train(useless, "--force")

    assert (codes, forced) == ((0, 1), 0)
    assert "release 2 is refused: Recall@10 on held-out items: expected at least" in said
    assert [one.version for one in announced(world)] == [1, 3]
    refused = read_release(world.trainer.releases_dir / "2")
    assert refused.training["refused"]
    assert refused.metrics["serving_version"] == 1
    assert refused.metrics["test"]["serving"]["recall@10"] > 0.9


def test_what_serves_when_a_training_is_done_is_the_measure(world: Settings) -> None:
    """A going back and an import in the midst of it count, and the import's number is taken."""
    train_release(world)
    train_release(training_as(world, USELESS), force=True)
    imported = random_release(world.worker.data_dir, [item(0), "other"], version=3)

    def go_back(progress: object) -> None:
        if isinstance(progress, TrainingProgress) and len(announced(world)) == 2:
            announce(world, imported)
            announce(world, read_release(world.trainer.releases_dir / "1"))

    report = train_release(training_as(world, USELESS), go_back)

    assert report.serving_version == 1
    assert report.refused is not None
    assert report.release.version == 4


def test_no_record_of_the_models_topic_makes_a_number_that_none_can_serve(world: Settings) -> None:
    """A release gets the next free number, however high or long those of records are."""
    announce_nowhere(world, 1, 10**400, 2**63 - 1, 2**31 - 1, 9_999_999, -5)

    report = train_release(world, force=True)

    assert report.release.version == 2
    announcement = announced(world)[-1]
    assert announcement.version == 2
    assert prepare(open_announced(announcement), device="cpu", top_k=5, ring=None).version == 2


def test_a_number_that_is_taken_in_the_last_moment_is_not_announced_twice(world: Settings) -> None:
    """Lists name a release by its number: another one by the same would be called stale."""

    def take_the_number(action: Callable[[], T]) -> T:
        if release_versions(world.trainer.releases_dir) == [1] and not announced(world):
            announce(world, random_release(world.worker.data_dir, [item(0), item(1)]))
        return action()

    with pytest.raises(SwapRejected, match="another one was announced by that number"):
        train_release(world, ask_broker=take_the_number)

    assert len(announced(world)) == 1


def test_without_a_serving_release_popularity_is_the_measure(world: Settings) -> None:
    """A first model that knows less than popularity is refused, a later one is not held to it."""
    assert run_train(training_as(world, USELESS)) == 1
    assert run_train(world, "--no-announce") == 0
    assert announced(world) == []
    assert release_versions(world.trainer.releases_dir) == [1, 2]


def test_a_serving_release_of_other_items_is_held_against_what_it_knows(world: Settings) -> None:
    """Targets that the serving release does not know are its misses; versions go on from it."""
    elsewhere = random_release(world.worker.data_dir, [item(0), "gone"], version=7)
    announce(world, elsewhere)

    report = train_release(world)

    assert report.release.version == 8
    assert report.serving_version == 7
    assert report.metrics["serving"]["recall@50"] < 0.2


@pytest.mark.parametrize(
    ("events", "message"),
    [
        ([], "expected events to train on, got none: 0 offsets read"),
        ([{"user": "u"}], "expected events to train on, got none: 1 offsets read: missing_user 1"),
        ([{"user_id": "u", "item_id": "i"}] * 4, "at least 2 different items, got one"),
        (
            [{"user_id": "u", "item_id": i} for i in "ab"] + [{"user_id": "v", "item_id": "a"}],
            "expected a user with at least 3 events, got 2 users with at most 2",
        ),
    ],
    ids=["none", "dead", "one-item", "short"],
)
def test_too_little_data_is_one_clear_line(
    settings: Settings,
    capsys: pytest.CaptureFixture[str],
    events: list[dict[str, object]],
    message: str,
) -> None:
    """A topic that cannot train a model ends the command with exit code 1 and the reason."""
    own = ring_settings(settings)
    send_events(own, [(0, value) for value in events])

    code = run_train(own)

    (line,) = [line for line in capsys.readouterr().err.splitlines() if "lrurec train:" in line]
    assert code == 1
    assert message in line
    assert release_versions(own.trainer.releases_dir) == []


def test_a_killed_training_goes_on_as_if_nothing_had_happened(
    world: Settings, tmp_path: Path
) -> None:
    """Killed in the middle and resumed while events come in, it makes the very same weights."""
    slow = training_as(world, dataclasses.replace(QUICK, max_epochs=60, patience=60))
    whole = train_release(
        trainer_as(slow, releases_dir=tmp_path / "uninterrupted"), announcing=False
    )
    checkpoint = TrainingFolder(slow.trainer.releases_dir).checkpoint

    with start_train(slow) as process:
        wait_until(checkpoint.exists, "the first checkpoint", 60)
        process.kill()
    assert process.returncode == -signal.SIGKILL
    assert release_versions(slow.trainer.releases_dir) == []
    before = torch.load(checkpoint, weights_only=True)["history"]
    send_walks(slow, users=20, seed=1)
    code = run_train(slow, "--resume")

    resumed = read_release(slow.trainer.releases_dir / "1")
    assert code == 0
    assert len(before) < 60
    assert resumed.training["history"][: len(before)] == before
    assert resumed.weights_id == whole.release.weights_id
    assert resumed.training["data"] == whole.data
    assert not checkpoint.exists()


def test_a_training_that_is_not_the_same_is_not_resumed(
    world: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """Other settings than the interrupted training's end in an error that says what to do."""
    checkpoint = interrupt_at_a_checkpoint(world)

    codes = [
        run_train(training_as(world, USELESS), "--resume"),
        run_train(fields_as(world, user_id="customer.id"), "--resume"),
        run_train(topics_as(world, interactions=world.topics.items, items="others"), "--resume"),
    ]
    kept = checkpoint.exists()
    plan = checkpoint.with_name("plan.json")
    good = plan.read_bytes()
    plan.write_bytes(b"{")
    codes.append(run_train(world, "--resume"))
    plan.write_bytes(good)
    resumed = run_train(world, "--resume")
    said = capsys.readouterr().err

    assert (codes, kept, resumed) == ([1, 1, 1, 1], True, 0)
    assert said.count("train without --resume to start anew") == 3
    assert "missing_user" in said


def test_ctrl_c_leaves_no_half_release(world: Settings) -> None:
    """The command ends with 130 and a hint; the folder of releases holds nothing else."""
    slow = training_as(world, dataclasses.replace(QUICK, max_epochs=5000, patience=5000))

    with start_train(slow) as process:
        wait_until(TrainingFolder(slow.trainer.releases_dir).checkpoint.exists, "training", 60)
        process.send_signal(signal.SIGINT)
        _, said = process.communicate(timeout=20)

    assert process.returncode == 130
    assert "lrurec train --resume" in said
    assert [path.name for path in slow.trainer.releases_dir.iterdir()] == [".training"]
    assert announced(slow) == []


def test_two_trainings_never_share_a_folder(
    world: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """The second one ends at once and names the process of the first."""
    slow = training_as(world, dataclasses.replace(QUICK, max_epochs=5000, patience=5000))

    with start_train(slow) as process:
        wait_until(TrainingFolder(slow.trainer.releases_dir).checkpoint.exists, "training", 60)
        code = run_train(world)
        process.kill()
    afterwards = run_train(world)

    assert (code, afterwards) == (1, 0)
    assert f"another training runs there (process {process.pid})" in capsys.readouterr().err


def test_a_broker_that_is_away_is_one_clear_line(settings: Settings) -> None:
    """Without Kafka the training fails before it begins."""
    away = dataclasses.replace(
        settings,
        kafka=dataclasses.replace(
            settings.kafka, bootstrap_servers="127.0.0.1:1", connect_timeout_s=0.2
        ),
    )

    with pytest.raises(BrokerUnavailable, match="no Kafka within"):
        train_release(away)


def test_too_little_data_is_forgotten(settings: Settings) -> None:
    """A training that found too little is not what --resume goes on with."""
    own = ring_settings(settings)
    with pytest.raises(NotEnoughEvents):
        train_release(own)
    send_walks(own, users=30)

    report = train_release(own, resume=True, announcing=False)

    assert report.data["users"] == 30
