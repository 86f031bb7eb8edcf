"""The whole loop on real data: Kafka, replay, training, a worker, the rest live, verification.

Everything is as in production: a real broker, the worker as a process of its own, the release by
announcement. What the demo starts, it stops, whatever ends it.
"""

import time
from collections.abc import Iterator
from contextlib import AbstractContextManager, ExitStack, contextmanager
from functools import partial
from pathlib import Path
from typing import TypeVar

from models.training.result import TrainingProgress
from pipeline.cluster.broker import stop
from pipeline.demo.data import HISTORY_SHARE, DemoData
from pipeline.demo.figures import Figures, Sampler, figures_between
from pipeline.demo.guard import Guard, own_folder, remove_earlier_run, require_space, stop_in_peace
from pipeline.demo.kafka import demo_kafka, demo_settings
from pipeline.demo.screen import Screen
from pipeline.demo.summary import DemoReport
from pipeline.demo.users import UserCards, UserFollower, items_of
from pipeline.demo.view import LiveView, latency_text, number, percent, recall_text, user_line
from pipeline.demo.worker import EVENTS, LOOK_PERIOD_S, DemoWorker
from pipeline.errors import NotEnoughEvents
from pipeline.log import configure_logging
from pipeline.replay import ReplayReport, replay
from pipeline.settings import Settings
from pipeline.training.job import TrainingReport, train_release
from pipeline.training.processes import training_device
from pipeline.training.sequences import ReadProgress
from pipeline.verification.report import VerifyReport
from pipeline.verification.verify import verify

TRAINING_BUDGET_S = 150.0
LIVE_RATES = (50.0, 100.0, 200.0, 500.0, 1000.0, 2000.0, 5000.0)
LEAST_LIVE_S = 60.0
CAPACITY_SHARE = 0.5
CONTINUED = " " * 10  # below the time in front of a plain line

T = TypeVar("T")


def choose_rate(events: int, capacity: float) -> float:
    """Return events per second of the live part.

    Args:
        events: How many there are: they are to take a minute at least, if they are enough.
        capacity: Events per second that the worker has managed: half of it is for the live part.
    """
    fitting = [
        rate
        for rate in LIVE_RATES
        if events / rate >= LEAST_LIVE_S and rate <= capacity * CAPACITY_SHARE
    ]
    return max(fitting, default=LIVE_RATES[0])


def log_files(folder: Path) -> tuple[Path, Path, Path]:
    """Return where the logs of the demo itself, the worker and Kafka are."""
    return folder / "demo.log", folder / "worker.log", folder / "broker" / "broker.log"


def run_demo(
    settings: Settings, screen: Screen, data: DemoData, *, rate: float | None, folder: Path
) -> DemoReport:
    """Run all of it; to be called by the main thread.

    Args:
        settings: What is not the demo's own affair: fields, model, sizes.
        screen: Where it is shown.
        data: What is replayed.
        rate: Events per second of the live part; None: see `choose_rate`.
        folder: Of the demo alone; what an earlier one left there is removed.

    Raises:
        PipelineError: What went wrong; everything is stopped.
    """
    started_s = time.monotonic()
    training_device(settings.trainer)  # one that is not there is refused now, not at the training
    with own_folder(folder), ExitStack() as stack:
        _log_to(log_files(folder)[0], settings)
        own = demo_settings(settings, folder, time_budget_s=TRAINING_BUDGET_S)
        demo = _Demo(own, screen, data, folder)
        with demo.guard.guarding():
            demo.clear()
            demo.start_kafka(stack)
            history = demo.replay_history()
            training = demo.train()
            worker, catch_up = demo.start_worker(stack)
            left = len(data.interactions) - data.split
            rate = rate or choose_rate(left, catch_up.rate)
            live_replay, live = demo.go_live(worker, rate)
            exit_code, verified = demo.verify(worker)
    return DemoReport(
        data=data,
        history=history,
        training=training,
        catch_up=catch_up,
        live_rate=rate,
        live_replay=live_replay,
        live=live,
        verified=verified,
        top_k=settings.recommend.top_k,
        worker_exit_code=exit_code,
        seconds=time.monotonic() - started_s,
    )


def _log_to(path: Path, settings: Settings) -> None:
    """Keep the log of this process off the screen.

    To its end: what libraries say when they are torn down in the midst of something belongs there.
    """
    configure_logging(settings.log, path.open("w", encoding="utf-8"))


@contextmanager
def _stopped_in_peace(started: AbstractContextManager[T]) -> Iterator[T]:
    """Let no further signal keep something that runs from being stopped."""
    with started as value:
        try:
            yield value
        finally:
            stop_in_peace()


class _Demo:
    """The steps, one after the other."""

    def __init__(self, settings: Settings, screen: Screen, data: DemoData, folder: Path) -> None:
        self.guard = Guard()
        self._settings = settings
        self._screen = screen
        self._data = data
        self._folder = folder
        self._worker_log = log_files(folder)[1]

    def clear(self) -> None:
        """Remove what an earlier run left, stop a Kafka that runs on it, and see to the space."""
        settings = self._settings
        stop(settings.broker)
        remove_earlier_run(
            [
                settings.broker.data_dir,
                settings.worker.data_dir,
                settings.trainer.releases_dir,
                self._worker_log,
            ]
        )
        require_space(self._folder, len(self._data.interactions))

    def start_kafka(self, stack: ExitStack) -> None:
        """Have a Kafka with all topics, until the stack is unwound."""
        with self._screen.step("Kafka", "starting (its jars are fetched once)") as step:
            kafka = stack.enter_context(_stopped_in_peace(demo_kafka(self._settings)))
            self.guard.watch("Kafka", kafka.why_ended)
            self._settings = kafka.settings
            step.result = kafka.description

    def replay_history(self) -> ReplayReport:
        """Send the first part as fast as Kafka takes it."""
        with self._screen.step("history", f"the first {HISTORY_SHARE:.0%} into the topic") as step:
            stop = self._data.split
            report = replay(
                self._settings,
                self._data.interactions,
                stop=stop,
                on_progress=lambda delivered: step.update(delivered, stop),
            )
            step.result = (
                f"{number(report.records)} events ({HISTORY_SHARE:.0%}) "
                f"at {number(report.rate)} events/s"
            )
            return report

    def train(self) -> TrainingReport:
        """Train on the topic and announce the release, whatever it measures.

        Raises:
            NotEnoughEvents: The first part of the data is too little.
        """
        training = self._settings.training
        with self._screen.step("training", "reading the topic") as step:
            budget_s = training.time_budget_s or TRAINING_BUDGET_S

            def on_progress(progress: ReadProgress | TrainingProgress) -> None:
                if isinstance(progress, ReadProgress):
                    step.update(progress.done, progress.total)
                    return
                best = progress.best_recall
                step.note = f"epoch {progress.epoch}, loss {progress.loss:.2f}" + (
                    "" if best is None else f", best Recall@10 {best:.1%}"
                )
                epochs = progress.epoch - 1 + progress.step / progress.steps
                share = max(epochs / progress.epochs, min(1.0, step.seconds / budget_s))
                step.update(share, 1.0)

            try:
                report = train_release(self._settings, on_progress, force=True)
            except NotEnoughEvents as error:
                msg = (
                    f"{self._data.name}: the first {HISTORY_SHARE:.0%} of its "
                    f"{len(self._data.interactions):,} rows are too little to train on: {error}"
                )
                raise NotEnoughEvents(msg) from error
            model, popular = (report.metrics[name]["recall@10"] for name in ("model", "popularity"))
            step.result = (
                f"{report.epochs:.1f} epochs, held-out Recall@10 {percent(model)}, "
                f"popularity {percent(popular)}"
            )
            return report

    def start_worker(self, stack: ExitStack) -> tuple[DemoWorker, Figures]:
        """Start a worker, wait until it has answered everything; its figures until then."""
        with self._screen.step("worker", "starting") as step:
            started = DemoWorker(self._settings, self._worker_log)
            worker = stack.enter_context(_stopped_in_peace(started))
            self.guard.watch("worker", worker.why_ended)
            first = worker.wait_until_ready()
            wanted = self._data.split
            while (reading := worker.read()).total(EVENTS) < wanted:
                so_far = figures_between(first, reading)
                step.note = f"catching up, {number(so_far.rate)} events/s"
                step.update(so_far.answered, wanted)
                time.sleep(LOOK_PERIOD_S)
            figures = figures_between(first, reading)
            step.result = (
                f"caught up: {number(figures.answered)} events at {number(figures.rate)} events/s"
            )
            return worker, figures

    def go_live(self, worker: DemoWorker, rate: float) -> tuple[ReplayReport, Figures]:
        """Send the rest at a rate and show what comes of it."""
        first = worker.read_at_rest()
        data, settings = self._data, self._settings
        port = settings.metrics.worker_port
        split, total = data.split, len(data.interactions)
        accepted = settings.fields.accepted_event_types
        cards = UserCards(partial(items_of, data.interactions, accepted))
        with ExitStack() as stack:
            sampler = stack.enter_context(Sampler(port, first))
            stack.enter_context(UserFollower(settings, cards))

            def describe() -> str:
                recent = sampler.recent()
                if self._screen.is_terminal:  # there, the rest is below
                    return f"{number(recent.rate)} events/s"
                card = cards.newest()
                return (
                    f"{number(recent.rate)} events/s, {latency_text(recent)}, "
                    f"waiting {number(recent.lag)}, Recall@10 {recall_text(sampler.whole())}"
                ) + (f"\n{CONTINUED}{user_line(card, data.titles)}" if card else "")

            step = stack.enter_context(self._screen.step("live", describe))
            step.body = LiveView(
                recent=sampler.recent,
                whole=sampler.whole,
                cards=cards.cards,
                titles=data.titles,
                top_k=settings.recommend.top_k,
            )
            report = replay(
                settings,
                data.interactions,
                start=split,
                rate=rate,
                on_progress=lambda delivered: step.update(delivered, total - split),
            )
            while worker.read().total(EVENTS) < total:
                time.sleep(LOOK_PERIOD_S)
            figures = figures_between(first, worker.read_at_rest())
            step.result = (
                f"{number(figures.answered)} events at {number(report.rate)} events/s: "
                f"{latency_text(figures)}"
            )
            return report, figures

    def verify(self, worker: DemoWorker) -> tuple[int, VerifyReport]:
        """Stop the worker and hold every state and recommendation against the topic.

        Returns:
            The worker's exit code, and what was found.
        """
        with self._screen.step("verify", "stopping the worker") as step:
            self.guard.let_go("worker")
            exit_code = worker.stop()

            def on_stage(stage: str) -> None:
                step.note = stage

            report = verify(self._settings, on_stage=on_stage)
            verdict = "all hold" if report.holds else "not all hold"
            step.result = (
                f"{number(report.states)} states, {number(report.outputs.lists)} lists "
                f"computed anew: {verdict}"
            )
            return exit_code, report
