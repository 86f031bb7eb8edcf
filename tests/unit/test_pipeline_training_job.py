"""What a training makes of its settings, of what serves and of what fails, without a Kafka."""

import dataclasses
import time
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.evaluation import Holdout, evaluate
from models.recommender import Recommender
from models.release import Release, load_recommender, read_release
from models.training.result import TrainingDiverged, TrainResult, Validation
from models.vocabulary import Vocabulary
from pipeline.errors import BrokerUnavailable, SwapRejected, TopicMismatch
from pipeline.settings import ModelSettings, RecommendSettings, Settings, TrainerSettings
from pipeline.training import job
from pipeline.training.folder import TrainingFolder, TrainingPlan
from pipeline.training.job import T, train_release
from pipeline.training.sequences import EventCounts, TopicSequences
from pipeline.worker.releases import Announcement
from tests.releases import random_release

N_ITEMS = 51
"""One more than the longest list that is measured: what is out of the ranking is never on it."""
RANGES = {0: (3, 9)}
CLOCKS_DIFFER_S = 1.0
"""The one that tells the time may be set meanwhile; a length of time is of another."""
COUNTS = EventCounts(applied=7, rare=1, duplicate=2, forgotten=3, skipped=4, dead={})
VALIDATION = Validation(epoch=2, step=9, loss=1.5, metrics={"recall@10": 0.25}, seconds=3.0)


@pytest.fixture
def settings(tmp_path: Path) -> Settings:
    """A small model, on this thread."""
    return Settings(
        model=ModelSettings(hidden_size=8, n_blocks=1, max_length=2),
        trainer=TrainerSettings(
            releases_dir=tmp_path / "releases", threads=1, device="cpu", scan="loop"
        ),
    )


class World:
    """What the topics hold, what a training learns, and what is asked of either."""

    def __init__(self) -> None:
        self.histories: Sequence[Sequence[int]] = [[5, 5, 5]] * 4
        self.serving: list[Announcement] = []
        self.announced: list[int] = []
        self.announcing_fails: BaseException | None = None
        self.training_fails: BaseException | None = None
        self.asked: dict[str, Any] = {}
        self.is_asking = False
        self.unasked: list[str] = []

    def ask(self, action: Callable[[], T]) -> T:
        """Do what needs Kafka."""
        self.is_asking = True
        try:
            return action()
        finally:
            self.is_asking = False

    def needing_kafka(self, name: str, stand_in: Callable[..., Any]) -> Callable[..., Any]:
        """Return a function that notes where it is called by its name without being asked for."""

        def call(*arguments: object) -> Any:
            if not self.is_asking:
                self.unasked.append(name)
            return stand_in(*arguments)

        return call

    def read(self, *_: object) -> TopicSequences:
        """Return the histories of users of whom every other one judges."""
        counts = np.bincount(np.concatenate(self.histories), minlength=N_ITEMS + 1)[1:]
        return TopicSequences(
            vocabulary=Vocabulary([f"i{n}" for n in range(N_ITEMS)], counts.tolist()),
            sequences=[np.array(history) for history in self.histories],
            user_hashes=np.arange(len(self.histories), dtype=np.uint64),
            ranges=RANGES,
            counts=COUNTS,
        )

    def train(self, config: Any, *_: object, **asked: Any) -> TrainResult:
        """Learn nothing."""
        self.asked = asked
        if self.training_fails is not None:
            asked["checkpoint_path"].touch()
            raise self.training_fails
        torch.manual_seed(0)
        self.recommender = Recommender(config).eval()
        return TrainResult(
            recommender=self.recommender,
            metrics=VALIDATION.metrics,
            best_epoch=2,
            history=(VALIDATION,),
            epochs=3.5,
            seconds=4.0,
            stopped_by="patience",
        )

    def announce(self, _: Settings, release: Release) -> None:
        """Take a release, or fail."""
        if self.announcing_fails is not None:
            raise self.announcing_fails
        self.announced.append(release.version)


@pytest.fixture
def world(monkeypatch: pytest.MonkeyPatch) -> World:
    """Topics and a training that are made up."""
    made = World()
    stand_ins: dict[str, Callable[..., Any]] = {
        "topic_id": lambda *_: "the-topic",
        "plan_ranges": lambda *_: RANGES,
        "read_announcements": lambda _: enumerate(made.serving),
        "read_sequences": made.read,
        "require_own_number": lambda *_: None,
        "announce": made.announce,
    }
    for name, stand_in in stand_ins.items():
        monkeypatch.setattr(job, name, made.needing_kafka(name, stand_in))
    monkeypatch.setattr(job, "train", made.train)
    return made


def serve(world: World, folder: Path) -> Release:
    """Let a release of the same items serve."""
    release = random_release(folder, [f"i{n}" for n in range(N_ITEMS)], version=4, max_length=2)
    world.serving.append(
        Announcement(
            version=release.version,
            location=str(release.path),
            manifest_sha256=release.manifest_sha256,
            created=release.created,
        )
    )
    return release


def measured(monkeypatch: pytest.MonkeyPatch, **recalls: float) -> None:
    """Let the new model, popularity and the serving release have these measures."""
    for function, name in (
        ("evaluate", "model"),
        ("evaluate_popularity", "popularity"),
        ("evaluate_release", "serving"),
    ):
        metrics = {"recall@10": recalls[name]}
        monkeypatch.setattr(job, function, lambda *_, metrics=metrics, **__: metrics)


@pytest.mark.parametrize(
    ("exclude_seen", "history", "recall"),
    [(True, [5, 5, 5], 0.0), (False, [5, 5, 5], 1.0), (True, [5, 1, 2, 5], 1.0)],
    ids=["out of the ranking", "in the ranking", "beyond the window"],
)
def test_what_workers_leave_out_is_measured_as_left_out(
    settings: Settings,
    world: World,
    tmp_path: Path,
    exclude_seen: bool,
    history: list[int],
    recall: float,
) -> None:
    """The training's validation, the new model, popularity and what serves go by one rule."""
    world.histories = [history] * 4
    serve(world, tmp_path)
    own = dataclasses.replace(settings, recommend=RecommendSettings(exclude_seen=exclude_seen))

    report = train_release(own)

    found = {name: metrics["recall@50"] for name, metrics in report.metrics.items()}
    assert found == dict.fromkeys(("model", "popularity", "serving"), recall)
    assert world.asked["mask_window"] is report.data["mask_window"] is exclude_seen


def test_all_are_measured_on_the_same_items_that_neither_trained_nor_chose(
    settings: Settings, world: World, tmp_path: Path
) -> None:
    """The last ones of those who judge; popularity does not count them either."""
    chooses, judges = [1, 1, 3], [1, 3, N_ITEMS]
    world.histories = [chooses, judges, chooses, judges]
    release = serve(world, tmp_path)

    report = train_release(
        dataclasses.replace(settings, recommend=RecommendSettings(exclude_seen=False))
    )

    by_hand = Holdout([np.array([1, 3])] * 2, np.array([N_ITEMS] * 2))
    expected = {
        name: evaluate(recommender, by_hand, mask_window=False)
        for name, recommender in (
            ("model", world.recommender),
            ("serving", load_recommender(release)),
        )
    }
    assert report.metrics["model"] == pytest.approx(expected["model"])
    assert report.metrics["serving"] == pytest.approx(expected["serving"])
    assert report.metrics["popularity"]["recall@50"] == pytest.approx(0)


@pytest.mark.parametrize(("max_drop", "refused"), [(0.25, True), (0.5, False)])
def test_how_much_worse_a_release_may_be_is_the_setting_s(
    settings: Settings,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    max_drop: float,
    refused: bool,
) -> None:
    """Of what the serving release hits, not of what is popular."""
    serve(world, tmp_path)
    measured(monkeypatch, model=0.3, popularity=0.9, serving=0.5)
    trainer = dataclasses.replace(settings.trainer, max_recall_drop=max_drop)

    report = train_release(dataclasses.replace(settings, trainer=trainer))

    assert (report.refused is not None) is refused
    assert world.announced == ([] if refused else [5])


@pytest.mark.parametrize("opened", [False, True])
def test_a_damaged_release_that_serves_is_no_measure(
    settings: Settings,
    world: World,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    caplog: pytest.LogCaptureFixture,
    opened: bool,
) -> None:
    """Damaged before or while one measures: popularity is the bar, and the log says so.

    Its number is taken all the same.
    """
    weights = serve(world, tmp_path).path / "weights.safetensors"

    def popularity(*_: object, **__: object) -> dict[str, float]:
        weights.write_bytes(weights.read_bytes()[:-1])
        return {"recall@10": 2.0}

    monkeypatch.setattr(job, "evaluate_popularity", popularity)
    if not opened:
        popularity()

    report = train_release(settings)

    assert set(report.metrics) == {"model", "popularity"}
    assert report.refused is not None
    assert "popularity's" in report.refused
    assert report.release.version == 5
    assert "new release is not held against it" in caplog.text


@pytest.mark.parametrize("force", [False, True])
def test_a_training_that_announces_nothing_announces_nothing(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch, force: bool
) -> None:
    """Nor does a start of the trainer after it."""
    measured(monkeypatch, model=0.3, popularity=0.2, serving=0.0)

    report = train_release(settings, announcing=False, force=force)

    written = read_release(report.release.path).training
    assert (report.refused, report.announced, written["to_announce"]) == (None, False, False)
    assert world.announced == []


@pytest.mark.parametrize(
    ("error", "advised"),
    [
        (BrokerUnavailable("no Kafka"), True),
        (KeyboardInterrupt(), True),
        (SwapRejected("the number is taken"), False),
    ],
)
def test_a_release_that_could_not_be_announced_is_not_lost(
    settings: Settings,
    world: World,
    caplog: pytest.LogCaptureFixture,
    error: BaseException,
    advised: bool,
) -> None:
    """It is whole in its folder; the log says how to announce it, where that would do."""
    world.announcing_fails = error

    with pytest.raises(type(error)):
        train_release(settings, force=True)

    release = read_release(settings.trainer.releases_dir / "1")
    assert release.training["to_announce"] is True
    assert (f"to announce it: lrurec announce {release.path}" in caplog.text) is advised
    assert TrainingFolder(settings.trainer.releases_dir).read_plan("interactions") is None


def test_a_missing_topic_of_models_is_known_before_the_training(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Not hours later; nothing is begun that could be gone on with."""

    def is_missing(_: Settings) -> None:
        raise TopicMismatch("no topic models")

    monkeypatch.setattr(job, "read_announcements", is_missing)

    with pytest.raises(TopicMismatch):
        train_release(settings)

    folder = TrainingFolder(settings.trainer.releases_dir)
    assert folder.read_plan(settings.topics.interactions) is None
    assert world.asked == {}


def test_whoever_asks_kafka_for_a_training_asks_for_all_of_it(
    settings: Settings, world: World
) -> None:
    """A trainer tries each again while Kafka is away; one that it is not asked for ends it."""
    train_release(settings, force=True, ask_broker=world.ask)

    assert world.announced == [1]
    assert world.unasked == []


def test_a_training_that_diverged_is_not_gone_on_with(settings: Settings, world: World) -> None:
    """It would diverge again: neither its plan nor its checkpoint is left."""
    world.training_fails = TrainingDiverged("the loss is nan")

    with pytest.raises(TrainingDiverged):
        train_release(settings)

    folder = TrainingFolder(settings.trainer.releases_dir)
    assert folder.read_plan(settings.topics.interactions) is None
    assert not folder.checkpoint.exists()


def test_a_training_that_was_ended_can_be_gone_on_with(settings: Settings, world: World) -> None:
    """Its plan names the topic and the offsets; its checkpoint is where the training put it."""
    world.training_fails = KeyboardInterrupt()

    with pytest.raises(KeyboardInterrupt):
        train_release(settings)

    folder, topic = TrainingFolder(settings.trainer.releases_dir), settings.topics.interactions
    assert folder.read_plan(topic) == TrainingPlan(topic=topic, topic_id="the-topic", ranges=RANGES)
    assert folder.checkpoint.exists()


@pytest.mark.parametrize("threads", [None, 3])
def test_a_training_has_the_threads_of_its_setting(
    settings: Settings, world: World, monkeypatch: pytest.MonkeyPatch, threads: int | None
) -> None:
    """Where none is set, torch has its own number."""
    taken: list[int] = []
    monkeypatch.setattr(torch, "set_num_threads", taken.append)
    trainer = dataclasses.replace(settings.trainer, threads=threads)

    train_release(dataclasses.replace(settings, trainer=trainer))

    assert taken == ([] if threads is None else [threads])


def test_a_release_tells_what_it_was_trained_on_and_how(settings: Settings, world: World) -> None:
    """Each number is the one of its name; the report says the same."""
    world.histories = [[5, 1, 2, 5], [3, 4, 5], [1, 2], *[[1, 2, 3]] * 3]

    began_s = time.time()
    report = train_release(settings)
    ended_s = time.time()

    release = read_release(report.release.path)
    written = release.training
    assert written["data"] == report.data
    assert report.data == {
        "topic": settings.topics.interactions,
        "topic_id": "the-topic",
        "ranges": {"0": [3, 9]},
        "events": 7,
        "events_rare": 1,
        "events_duplicate": 2,
        "events_forgotten": 3,
        "records_skipped": 4,
        "records_dead": {},
        "users": 6,
        "items": N_ITEMS,
        "validation_users": 2,
        "test_users": 3,
        "mask_window": settings.recommend.exclude_seen,
    }
    ended = {"epochs": 3.5, "best_epoch": 2, "stopped_by": "patience", "seconds": 4.0}
    assert {name: written[name] for name in ended} == ended
    assert (report.epochs, report.best_epoch, report.stopped_by) == (3.5, 2, "patience")
    assert report.training_s == pytest.approx(4.0)
    assert began_s <= written["started_s"] <= ended_s
    assert 0 < report.seconds <= ended_s - began_s + CLOCKS_DIFFER_S
    assert written["settings"] == dataclasses.asdict(settings.training)
    assert written["history"] == [dataclasses.asdict(VALIDATION)]
    assert report.validation == VALIDATION.metrics
    assert release.metrics["validation"] == {"model": VALIDATION.metrics}
    assert release.metrics["test"] == report.metrics
