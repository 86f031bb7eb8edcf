"""The trainer: trains again as time passes or events come in, until it is told to stop.

It keeps nothing of its own between two trainings: when the last one began and what it read stand in
the newest release's manifest, so a trainer that starts again goes on as if it had never stopped.
Several trainers on one folder of releases take turns. A Kafka that is away is waited for.
"""

import logging
import signal
import time
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from datetime import datetime
from typing import TypeVar

import torch

from models.errors import ModelError, ReleaseError
from models.manifest import Manifest
from models.release import read_release
from models.training.checkpoint import ResumeMismatch
from models.training.result import SELECTION_METRIC, TrainingProgress
from pipeline.cluster.records import end_offsets
from pipeline.cluster.topics import NO_ID, may_be_same, topic_id
from pipeline.errors import (
    BrokerRefuses,
    BrokerUnavailable,
    FolderUnusable,
    NotEnoughEvents,
    SwapRejected,
    TrainingLocked,
)
from pipeline.metrics import TrainerMetrics
from pipeline.settings import Settings, TrainerSettings
from pipeline.training.folder import TrainingFolder, last_number, manifests, release_versions
from pipeline.training.job import TrainingReport, train_release
from pipeline.training.sequences import ReadProgress
from pipeline.worker.releases import announce, read_announcements

_log = logging.getLogger(__name__)

T = TypeVar("T")

WATCH_S = 2.0
"""Pause between two looks at how many events there are."""
LONGEST_PAUSE_S = 30.0
"""Pauses between two tries to reach Kafka grow up to this."""


class TrainerStopped(SystemExit):
    """The trainer was told to stop, and does."""


class StopRequest:
    """What SIGTERM and SIGINT do: end a wait at once, a training after its next step.

    Files are so never left half written, and a second signal has no other effect than the first.
    """

    def __init__(self) -> None:
        self._requested = False
        self._waiting = False

    def listen(self) -> None:
        """Take the process's signals from now on; only in the main thread."""
        for number in (signal.SIGTERM, signal.SIGINT):
            signal.signal(number, self._handle)

    def check(self) -> None:
        """Raise TrainerStopped where a stop was asked for."""
        if self._requested:
            raise TrainerStopped(0)

    @contextmanager
    def waiting(self) -> Iterator[None]:
        """A stop may raise TrainerStopped anywhere inside."""
        self._waiting = True
        try:
            self.check()
            yield
        finally:
            self._waiting = False

    def _handle(self, _number: int, _frame: object) -> None:
        self._requested = True
        if self._waiting:
            self._waiting = False
            raise TrainerStopped(0)


@dataclass(frozen=True, kw_only=True)
class LastTraining:
    """What the next training is counted from.

    Attributes:
        started_s: When it began, Unix time.
        ends: Per partition the offset up to which it read.
        enough_events: So many new ones make the next training due; None: no number does.
    """

    started_s: float
    ends: Mapping[int, int]
    enough_events: int | None


def is_due(
    trainer: TrainerSettings, last: LastTraining, ends: Mapping[int, int], now_s: float
) -> bool:
    """Tell whether to train again; never without a new event.

    Args:
        trainer: The period.
        last: The training before.
        ends: Where the partitions end now.
        now_s: Unix time.
    """
    before = ((end, last.ends.get(partition, 0)) for partition, end in ends.items())
    # An end that went back means that the topic was made anew.
    new = sum(end - old if end >= old else end for end, old in before)
    enough = last.enough_events is not None and new >= last.enough_events
    # Of either sign: a clock that was ahead when it began must not put the next one off for ever.
    late = trainer.period_s is not None and abs(now_s - last.started_s) >= trainer.period_s
    return new > 0 and (enough or late)


def next_due(trainer: TrainerSettings, last: LastTraining) -> str:
    """Say in words what `is_due` waits for.

    Args:
        trainer: The period.
        last: The training before.
    """
    causes = []
    if last.enough_events is not None:
        causes.append(f"{last.enough_events} new events" if last.enough_events > 1 else "any event")
    if trainer.period_s is not None and last.started_s:
        causes.append(f"any event {trainer.period_s:g} s after the last training began")
    return " or ".join(causes)


class Trainer:
    """Trains whenever it is due.

    Args:
        settings: All settings.
        metrics: Counts what happens.
        stop: Ends it.
    """

    def __init__(self, settings: Settings, metrics: TrainerMetrics, stop: StopRequest) -> None:
        self._settings = settings
        self._metrics = metrics
        self._stop = stop
        self._noted = 0

    def run(self) -> None:
        """Train until a stop ends it, which leaves as TrainerStopped.

        Raises:
            TopicMismatch: A topic is missing.
            SettingsInvalid: The folder of releases cannot be written.
            BrokerRefuses: Kafka refuses the password, mechanism or certificate.
        """
        settings, trainer = self._settings, self._settings.trainer
        folder = TrainingFolder(trainer.releases_dir)
        # A folder that cannot be written is to be known now; one that is in use is fine.
        with suppress(TrainingLocked), folder.locked():
            pass
        # Alerts are not to wait for Kafka; what it alone knows is looked at again below.
        self._note_age(self._named_manifests())
        self._announce_left_over()
        nothing = LastTraining(started_s=0.0, ends={}, enough_events=1)
        last, said = self._last_release() or nothing, ""
        goes_on = True  # at once, with what another run left; after a failure when it is due
        while True:
            self._note_newest()
            ends = self.ask_broker(
                lambda: end_offsets(settings.kafka, settings.topics.interactions, committed=True)
            )
            goes_on = goes_on and self._left_interrupted(folder)
            if not goes_on and is_due(trainer, last, ends, time.time()):
                # Another trainer, or a training by hand, may have been first.
                last = max(last, self._last_release() or last, key=lambda one: one.started_s)
            waits_for = f"waiting for {next_due(trainer, last)}"
            if goes_on or is_due(trainer, last, ends, time.time()):
                try:
                    last, goes_on = self._train(folder, ends), False
                    continue
                except TrainingLocked as error:
                    waits_for = f"{error}; waiting for it"
                    goes_on = True  # should it be killed
            if waits_for != said:
                _log.info("%s", waits_for)
                said = waits_for
            self._wait(WATCH_S)

    def _left_interrupted(self, folder: TrainingFolder) -> bool:
        """Tell whether there is a training to go on with; one of another topic is given up."""
        try:
            return folder.read_plan(self._settings.topics.interactions) is not None
        except ResumeMismatch as error:
            _log.warning("%s: not gone on with", error)
            return False

    def ask_broker(self, action: Callable[[], T]) -> T:
        """Do something that needs Kafka, as often as it takes; a stop may end it anywhere.

        Raises:
            BrokerRefuses: No waiting helps.
        """
        pause_s = 1.0
        while True:
            try:
                with self._stop.waiting():
                    return action()
            except BrokerRefuses:
                raise
            except BrokerUnavailable as error:
                _log.warning("%s; trying again in %g s", error, pause_s)
            self._wait(pause_s)
            pause_s = min(2 * pause_s, LONGEST_PAUSE_S)

    def _wait(self, seconds: float) -> None:
        with self._stop.waiting():
            time.sleep(seconds)

    def _announce_left_over(self) -> None:
        """Announce the newest release where a trainer ended between writing and announcing it."""
        settings = self._settings
        manifest = next(self._own_manifests(), None)
        if manifest is None or not manifest.training.get("to_announce"):
            return
        announced = self.ask_broker(
            lambda: {one.version for _, one in read_announcements(settings)}
        )
        if manifest.version in announced or manifest.version < last_number(announced):
            return
        try:
            release = read_release(settings.trainer.releases_dir / str(manifest.version))
        except ReleaseError as error:
            _log.warning("%s; it was not announced, and will not be", error)
            return
        self.ask_broker(lambda: announce(settings, release))
        _log.info("release %d is announced, which an earlier run had left", release.version)

    def _note_newest(self) -> None:
        """Tell how old the newest release is that the gate let pass, whoever made it."""
        newest = max(release_versions(self._settings.trainer.releases_dir), default=0)
        if newest == self._noted:
            return
        self._noted = newest
        self._note_age(self._own_manifests())

    def _note_age(self, newest_first: Iterator[Manifest]) -> None:
        passed = (one for one in newest_first if one.training.get("to_announce"))
        newest = next(passed, None)
        created_s = datetime.fromisoformat(newest.created).timestamp() if newest else 0.0
        self._metrics.last_release_timestamp.set(created_s)

    def _named_manifests(self) -> Iterator[Manifest]:
        """Yield those of releases made from a topic of this name, newest first."""
        for manifest in manifests(self._settings.trainer.releases_dir):
            if manifest.training.get("data", {}).get("topic") == self._settings.topics.interactions:
                yield manifest

    def _own_manifests(self) -> Iterator[Manifest]:
        """Yield those of releases made from this topic, newest first.

        The folder may hold others: a trainer can be pointed at another topic, or cluster.
        """
        topic, kafka = self._settings.topics.interactions, self._settings.kafka
        found_id: str | None = None
        for manifest in self._named_manifests():
            if found_id is None:
                found_id = self.ask_broker(lambda: topic_id(kafka, topic))
            if may_be_same(manifest.training["data"].get("topic_id", NO_ID), found_id):
                yield manifest

    def _last_release(self) -> LastTraining | None:
        """Return the training of the newest release; None without one made from this topic."""
        for manifest in self._own_manifests():
            ranges = manifest.training["data"]["ranges"]
            return LastTraining(
                started_s=manifest.training["started_s"],
                ends={int(partition): end for partition, (_, end) in ranges.items()},
                enough_events=self._settings.trainer.min_new_events,
            )
        return None

    def _train(self, folder: TrainingFolder, ends: Mapping[int, int]) -> LastTraining:
        """Train once, whatever comes of it.

        Raises:
            TrainingLocked: Another training runs.
        """
        runs, started_s = self._metrics.runs, time.time()
        enough_events = self._settings.trainer.min_new_events
        try:
            report = self._release(folder)
            runs["rejected" if report.refused else "released"].inc()
            self._note(report)
            ranges = report.data["ranges"]
            ends = {int(partition): end for partition, (_, end) in ranges.items()}
        except NotEnoughEvents as error:
            # Too early: look again when there are twice as many.
            so_far = max(1, sum(ends.values()))
            enough_events = min(so_far, enough_events or so_far)
            _log.info("%s; waiting for more", error)
        except (ModelError, SwapRejected, FolderUnusable) as error:
            runs["failed"].inc()
            _log.error("no release: %s", error)
        torch.cuda.empty_cache()  # workers may be on the same GPU
        return LastTraining(started_s=started_s, ends=ends, enough_events=enough_events)

    def _release(self, folder: TrainingFolder) -> TrainingReport:
        """Go on with the training that the folder holds; without one, or in vain, train anew."""
        try:
            return train_release(
                self._settings, self._note_progress, resume=True, ask_broker=self.ask_broker
            )
        except ResumeMismatch as error:
            _log.warning("%s", error)
        except NotEnoughEvents as error:
            if not self._left_interrupted(folder):
                raise  # it was one of now
            _log.warning("%s: what was interrupted is given up", error)
        return train_release(self._settings, self._note_progress, ask_broker=self.ask_broker)

    def _note_progress(self, progress: ReadProgress | TrainingProgress) -> None:
        self._stop.check()
        if isinstance(progress, TrainingProgress):
            self._metrics.steps.inc()
            self._metrics.loss.set(progress.loss)

    def _note(self, report: TrainingReport) -> None:
        metrics, release = self._metrics, report.release
        metrics.seconds.observe(report.seconds)
        metrics.events.set(report.data["events"])
        for method in metrics.recall.keys() & report.metrics.keys():
            metrics.recall[method].set(report.metrics[method][SELECTION_METRIC])
        recalls = (f"{name} {one[SELECTION_METRIC]:.4f}" for name, one in report.metrics.items())
        if report.refused:
            _log.warning("release %d is refused: %s", release.version, report.refused)
        else:
            _log.info("release %d is announced", release.version)
        _log.info(
            "release %d: Recall@10 %s; %d events, %d users, %d items; %.1f s",
            release.version,
            ", ".join(recalls),
            report.data["events"],
            report.data["users"],
            report.data["items"],
            report.seconds,
        )
