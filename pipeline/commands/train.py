"""`lrurec train`: one training on the topic."""

import sys
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.json_report import write_json_report
from pipeline.settings import Settings, SettingsFlags, Switch


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train on the interactions topic, write a release and announce it to the workers.

    The last item of users is held out to measure by. A release that falls behind the one that
    serves, or behind popularity where none does, is not announced; the exit code is then 1.
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
    from rich.console import Console  # here and below: only for those who run

    from pipeline.training.job import train_release
    from pipeline.training.view import metrics_table, training_bar

    try:
        with training_bar() as progress:
            report = train_release(
                command.settings,
                progress,
                announcing=not command.no_announce,
                force=command.force,
                resume=command.resume,
            )
    except (KeyboardInterrupt, SystemExit):
        print("lrurec train: interrupted; go on with: lrurec train --resume", file=sys.stderr)
        raise
    Console().print(metrics_table(report.metrics))
    release, data = report.release, report.data
    print(
        f"release {release.version} in {release.path}: {data['events']} events, "
        f"{data['users']} users, {data['items']} items; measured on the last items of "
        f"{data['validation_users']} users; {report.epochs:.1f} epochs, {report.seconds:.1f} s"
    )
    print("announced" if report.announced else "not announced")
    write_json_report(
        command.json,
        {
            "metrics": {"validation": report.metrics},
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
    if report.refused is not None and not report.announced:
        print(
            f"lrurec train: release {release.version} is refused: {report.refused}", file=sys.stderr
        )
        return 1
    return 0
