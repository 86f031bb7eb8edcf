"""One training on the interactions topic, from its records to an announced release.

Every user's items are one sequence (`pipeline.training.sequences`). The last item of up to
`trainer.validation_users` users is held out: those of one half choose the best weights, and those
of the other judge the release, beside popularity and the release that serves
(`pipeline.training.gate`). What is measured is what will be served: items of the window are out of
the ranking exactly where workers leave seen items out (`recommend.exclude_seen`).

A release that is refused stays in its folder, unannounced. An interrupted training can be resumed
from its last validation; it then reads the same offsets again. Where events of these were forgotten
meanwhile, what it has learned comes of other data: it is not resumed, as with other settings.

Where several processes train, the first does all of this; the others get from it what it read, and
help with the training alone.
"""

import logging
import time
from collections.abc import Callable, Mapping
from dataclasses import asdict, dataclass
from typing import Any, NamedTuple, Protocol, TypeVar

import torch

from models.errors import ReleaseError
from models.evaluation import Split, evaluate
from models.popularity import evaluate_popularity, item_counts
from models.processes import Processes
from models.release import Release, write_release
from models.training.result import TrainingDiverged, TrainingProgress, TrainResult
from models.training.train import train
from pipeline.cluster.topics import topic_id
from pipeline.errors import NotEnoughEvents, SwapRejected
from pipeline.settings import Settings
from pipeline.training.folder import TrainingFolder, TrainingPlan, free_number
from pipeline.training.gate import evaluate_release, serving_release, why_refused
from pipeline.training.holdout import MIN_SPLIT_ITEMS, hold_out_last_items
from pipeline.training.processes import training_device
from pipeline.training.ranges import plan_ranges
from pipeline.training.scan_form import fastest_scan
from pipeline.training.sequences import (
    ReadProgress,
    TopicSequences,
    read_sequences,
)
from pipeline.worker.releases import (
    Announcement,
    announce,
    read_announcements,
    require_own_number,
)
from pipeline.worker.served_model import choose_device

_log = logging.getLogger(__name__)

T = TypeVar("T")
Progress = Callable[[ReadProgress | TrainingProgress], None]


class AskBroker(Protocol):
    """Does something that needs Kafka: once, or as often as it takes."""

    def __call__(self, action: Callable[[], T], /) -> T:
        """Return what the action returns."""


def ask_once(action: Callable[[], T]) -> T:
    """Do it; a Kafka that does not answer ends the training."""
    return action()


class TrainingData(NamedTuple):
    """What every process needs of what the first one read."""

    n_items: int
    """Items of the vocabulary."""
    split: Split
    """What to train on and to validate by."""


@dataclass(frozen=True, kw_only=True)
class TrainingReport:
    """What came of a training.

    Attributes:
        release: The new release, in its folder.
        refused: Why it may not serve; None where it may.
        announced: Whether it was announced to the workers.
        metrics: Of `model`, `popularity` and, where a release serves, `serving`: those of
            `models.evaluation.ranking_metrics` on the held-out items that chose no weights.
        validation: Those of the model on the items that did.
        serving_version: Version of the release that served meanwhile; None without one.
        data: The events, their counts and the offsets that were read; whatever JSON can hold.
        epochs: Passes over the training data.
        best_epoch: The pass that the weights are of.
        stopped_by: What ended the training: epochs, patience or time.
        training_s: Seconds of training and validation.
        seconds: Seconds of everything.
    """

    release: Release
    refused: str | None
    announced: bool
    metrics: Mapping[str, Mapping[str, float]]
    validation: Mapping[str, float]
    serving_version: int | None
    data: Mapping[str, Any]
    epochs: float
    best_epoch: int
    stopped_by: str
    training_s: float
    seconds: float


def train_release(
    settings: Settings,
    progress: Progress = lambda _: None,
    *,
    announcing: bool = True,
    force: bool = False,
    resume: bool = False,
    ask_broker: AskBroker = ask_once,
    processes: Processes | None = None,
) -> TrainingReport:
    """Read, train, judge, write and announce; where several processes train, the first one's part.

    Args:
        settings: All settings.
        progress: Called while reading and after every step; an exception from it ends the training.
        announcing: Whether a release that may serve is announced.
        force: Announce also one that is refused.
        resume: Go on where an interrupted training left off, if there is one.
        ask_broker: Everything that needs Kafka goes through it.
        processes: Those that train; the others call `help_to_train` meanwhile. None: this one.

    Raises:
        NotEnoughEvents: The topic holds too little to train on.
        TrainingLocked: Another training runs in the same folder of releases.
        BrokerUnavailable: No answer from Kafka.
        TopicMismatch: A topic is missing.
        SwapRejected: Another release was announced by the new one's number, just now.
        models.errors.ModelError: The training diverged, an interrupted one cannot be resumed with
            these settings, or the release cannot be written.
    """
    folder = TrainingFolder(settings.trainer.releases_dir)
    processes = processes or Processes()
    with folder.locked():
        started_s, started = time.time(), time.monotonic()
        _announcements(settings, ask_broker)  # a topic that is missing is to be known now
        topic, kafka = settings.topics.interactions, settings.kafka
        found_id = ask_broker(lambda: topic_id(kafka, topic))
        interrupted = folder.read_plan(topic, found_id) if resume else None
        if interrupted is None:
            ranges = ask_broker(lambda: plan_ranges(settings, started_s))
            plan = TrainingPlan(topic=topic, topic_id=found_id, ranges=ranges)
            folder.begin(plan)
        else:
            plan = interrupted
            _log.info("going on with the training that was interrupted")
        _log.info("training on %s", topic)
        try:
            read = ask_broker(lambda: read_sequences(settings, plan.ranges, progress))
            split = hold_out_last_items(
                read.sequences, read.user_hashes, settings.trainer.validation_users
            )
            _require_enough(read, split, settings.topics.interactions)
        except NotEnoughEvents:
            if interrupted is None:  # else what it has learned is kept: a setting may be missing
                folder.clear()
            raise
        data_of_all = processes.from_first(TrainingData(read.vocabulary.n_items, split))
        try:
            result = _train(settings, data_of_all, progress, processes)
        except TrainingDiverged:
            folder.clear()  # it would diverge again
            raise
        announcements = _announcements(settings, ask_broker)  # of now: a training takes its time
        serving = serving_release(announcements)
        metrics = _compare(settings, read, split, result, serving)
        refused = why_refused(
            metrics["model"],
            metrics["popularity"],
            metrics.get("serving"),
            max_drop=settings.trainer.max_recall_drop,
        )
        announced = announcing and (force or refused is None)
        data = _describe_data(settings, plan, read, split)
        serving_version = None if serving is None else serving.version
        announced_numbers = {one.version for one in announcements}
        release = write_release(
            settings.trainer.releases_dir,
            version=free_number(settings.trainer.releases_dir, announced_numbers),
            recommender=result.recommender,
            vocabulary=read.vocabulary,
            metrics={
                "validation": {"model": result.metrics},
                "test": metrics,
                "serving_version": serving_version,
            },
            training={
                "started_s": started_s,
                "refused": refused,
                "to_announce": announced,
                "data": data,
                "settings": asdict(settings.training),
                "epochs": result.epochs,
                "best_epoch": result.best_epoch,
                "stopped_by": result.stopped_by,
                "seconds": result.seconds,
                "history": [asdict(validation) for validation in result.history],
            },
        )
        folder.clear()
        if announced:
            _announce(settings, release, ask_broker)
        return TrainingReport(
            release=release,
            refused=refused,
            announced=announced,
            metrics=metrics,
            validation=result.metrics,
            serving_version=serving_version,
            data=data,
            epochs=result.epochs,
            best_epoch=result.best_epoch,
            stopped_by=result.stopped_by,
            training_s=result.seconds,
            seconds=time.monotonic() - started,
        )


def help_to_train(settings: Settings, processes: Processes) -> None:
    """Take the part of a process that is not the first in its training.

    Args:
        settings: Those of the first process.
        processes: All of them.

    Raises:
        models.errors.ModelError: The training diverged, or another process is gone.
    """
    _train(settings, processes.from_first(None), lambda _: None, processes)


def _require_enough(read: TopicSequences, split: Split, topic: str) -> None:
    """Refuse what a model cannot be trained on or judged by.

    Raises:
        NotEnoughEvents: There are not two items, or no user has an item to hold out.
    """
    if read.vocabulary.n_items < 2:
        msg = f"{topic}: expected at least 2 different items, got one"
        raise NotEnoughEvents(msg)
    if not split.validation.histories:
        longest = max(map(len, read.sequences))
        msg = (
            f"{topic}: expected a user with at least {MIN_SPLIT_ITEMS} events, got "
            f"{len(read.sequences)} users with at most {longest}"
        )
        raise NotEnoughEvents(msg)


def _train(
    settings: Settings, data: TrainingData, progress: Progress, processes: Processes
) -> TrainResult:
    if settings.trainer.threads is not None:
        torch.set_num_threads(settings.trainer.threads)
    with fastest_scan(settings.trainer):
        return train(
            settings.model.config(data.n_items),
            settings.training,
            data.split.train,
            data.split.validation,
            mask_window=settings.recommend.exclude_seen,
            progress=progress,
            checkpoint_path=TrainingFolder(settings.trainer.releases_dir).checkpoint,
            processes=processes,
            device=training_device(settings.trainer),
        )


def _compare(
    settings: Settings,
    read: TopicSequences,
    split: Split,
    result: TrainResult,
    serving: Release | None,
) -> dict[str, dict[str, float]]:
    """Measure the new model, popularity and the release that serves on the same held-out items."""
    mask_window = settings.recommend.exclude_seen
    metrics = {
        "model": evaluate(result.recommender, split.test, mask_window=mask_window),
        "popularity": evaluate_popularity(
            item_counts(split.train, read.vocabulary.n_items),
            split.test,
            max_length=settings.model.max_length,
            mask_window=mask_window,
        ),
    }
    if serving is not None:
        try:
            metrics["serving"] = evaluate_release(
                serving,
                read.vocabulary,
                split.test,
                mask_window=mask_window,
                device=choose_device(settings.trainer.device),
            )
        except ReleaseError as error:
            _log.warning("%s; the new release is not held against it", error)
    return metrics


def _announcements(settings: Settings, ask_broker: AskBroker) -> list[Announcement]:
    return ask_broker(lambda: [one for _, one in read_announcements(settings)])


def _announce(settings: Settings, release: Release, ask_broker: AskBroker) -> None:
    try:
        ask_broker(lambda: require_own_number(settings, release))
        ask_broker(lambda: announce(settings, release))
    except SwapRejected:
        raise
    except BaseException:  # Kafka is away, or someone ends it: the training is not lost
        _log.warning(
            "release %d is whole, but not announced; to announce it: lrurec announce %s",
            release.version,
            release.path,
        )
        raise


def _describe_data(
    settings: Settings, plan: TrainingPlan, read: TopicSequences, split: Split
) -> dict[str, Any]:
    return {
        "topic": plan.topic,
        "topic_id": plan.topic_id,
        "ranges": {str(partition): list(ends) for partition, ends in read.ranges.items()},
        "events": read.counts.applied,
        "events_rare": read.counts.rare,
        "events_duplicate": read.counts.duplicate,
        "events_forgotten": read.counts.forgotten,
        "records_skipped": read.counts.skipped,
        "records_dead": {reason.value: number for reason, number in read.counts.dead.items()},
        "users": len(read.sequences),
        "items": read.vocabulary.n_items,
        "validation_users": len(split.validation.histories),
        "test_users": len(split.test.histories),
        "mask_window": settings.recommend.exclude_seen,
    }
