"""`lrurec train`: one training on the topic."""

import logging
import sys
from contextlib import suppress
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING

from pipeline.json_report import write_json_report
from pipeline.settings import Settings, SettingsFlags, Switch

if TYPE_CHECKING:
    from models.processes import Processes
    from pipeline.training.job import TrainingReport

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train on the interactions topic, write a release and announce it to the workers.

    The last item of users is held out to measure by. A release that falls behind the one that
    serves, or behind popularity where none does, is not announced; the exit code is then 1.
    Under torchrun all processes train together; the first does the rest.
    """

    no_announce: Switch = False
    """Only write the release."""

    force: Switch = False
    """Announce the release whatever it measures."""

    resume: Switch = False
    """Go on with a training that was interrupted, if there is one, on the events it had read."""

    json: Path | None = None
    """File to write the result to: metrics by split and method, epochs, seconds, version, data."""

    settings: SettingsFlags = field(default_factory=Settings)


def run(command: Command) -> int:
    """Train; 0, or 1 for a release that was refused."""
    from pipeline.training.job import help_to_train  # here and below: only for those who run
    from pipeline.training.processes import joined_processes

    with joined_processes(command.settings.trainer) as processes:
        if not processes.first:
            help_to_train(command.settings, processes)
            return 0
        report = _train(command, processes)
    return _tell(command, report)


def _train(command: Command, processes: "Processes") -> "TrainingReport":
    from models.training.checkpoint import ResumeMismatch
    from pipeline.training.folder import TrainingFolder
    from pipeline.training.job import train_release
    from pipeline.training.view import training_bar

    settings = command.settings
    folder = TrainingFolder(settings.trainer.releases_dir)
    if command.resume and not folder.holds_plan():
        _log.warning(
            "no interrupted training in %s: this is a new one", settings.trainer.releases_dir
        )
    try:
        with training_bar() as progress:
            return train_release(
                settings,
                progress,
                announcing=not command.no_announce,
                force=command.force,
                resume=command.resume,
                processes=processes,
            )
    except ResumeMismatch as error:
        msg = f"{error}; train without --resume to start anew"
        raise ResumeMismatch(msg) from error
    except (KeyboardInterrupt, SystemExit):
        # Without a plan there is nothing to go on with: not yet begun, or done but for the end.
        plan = None
        with suppress(ResumeMismatch):
            plan = folder.read_plan(settings.topics.interactions)
        go_on = "; go on with: lrurec train --resume" if plan is not None else ""
        print(f"lrurec train: interrupted{go_on}", file=sys.stderr)
        raise


def _tell(command: Command, report: "TrainingReport") -> int:
    from pipeline.console import CommandConsole
    from pipeline.training.view import metrics_table

    release, data = report.release, report.data
    write_json_report(
        command.json,
        {
            "metrics": {"validation": {"model": report.validation}, "test": report.metrics},
            "epochs": report.epochs,
            "best_epoch": report.best_epoch,
            "stopped_by": report.stopped_by,
            "seconds": report.seconds,
            "training_s": report.training_s,
            "version": release.version,
            "path": release.path,
            "manifest_sha256": release.manifest_sha256,
            "announced": report.announced,
            "refused": report.refused,
            "serving_version": report.serving_version,
            "data": data,
        },
    )
    CommandConsole().print(metrics_table(report.metrics))
    print(
        f"release {release.version} in {release.path}: {data['events']} events, "
        f"{data['users']} users, {data['items']} items; measured on the last items of "
        f"{data['test_users']} users; {report.epochs:.1f} epochs, {report.seconds:.1f} s"
    )
    print("announced" if report.announced else "not announced")
    if report.refused is not None and not report.announced:
        print(
            f"lrurec train: release {release.version} is refused: {report.refused}", file=sys.stderr
        )
        return 1
    return 0
