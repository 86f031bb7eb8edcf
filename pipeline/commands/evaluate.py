"""`lrurec evaluate`: rank by the published protocol on a file."""

import time
from contextlib import nullcontext
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from pipeline.errors import SettingsInvalid
from pipeline.json_report import write_json_report
from pipeline.setting_checks import check_output_file
from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train on a data file and rank held-out items, beside popularity; needs no Kafka.

    The protocol `lrurec` is that of the LRURec paper's code: every user's last item tests, the one
    before it validates; all items are ranked but those of the window that the model sees.
    Under torchrun all processes train together.
    """

    data: tyro.conf.Positional[Path]
    """Interactions: csv, tsv or parquet with user,item,timestamp[,event_type], or .seq.txt; .gz."""

    protocol: Literal["lrurec"] = "lrurec"
    """How it is measured."""

    release: Path | None = None
    """Folder of a release to rank by instead of training; its item ids must be the file's."""

    checkpoint: Path | None = None
    """File of the training, written at every validation; if it is there, the training goes on from
    it. An interrupted one so ends as it would have."""

    json: Path | None = None
    """File to write the result to: metrics by split and method, every validation, epochs, seconds,
    model, data."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if self.release is not None and self.checkpoint is not None:
            msg = "checkpoint is of a training, and with release there is none: give one of them"
            raise SettingsInvalid(msg)


def run(command: Command) -> int:
    """Measure; the first process prints."""
    from models.release import read_release  # here and below: only for those who run
    from pipeline.console import CommandConsole
    from pipeline.training.file_evaluation import evaluate_file
    from pipeline.training.processes import joined_processes
    from pipeline.training.view import metrics_table, training_bar

    check_output_file("--checkpoint", command.checkpoint)
    started = time.monotonic()
    release = None if command.release is None else read_release(command.release)
    with (
        joined_processes(command.settings.trainer) as processes,
        training_bar() if processes.first else nullcontext() as progress,
    ):
        report = evaluate_file(
            command.settings, command.data, release, progress, command.checkpoint, processes
        )
    if not processes.first:
        return 0
    seconds = time.monotonic() - started
    data, result = report.data, report.result
    write_json_report(
        command.json,
        {
            "protocol": command.protocol,
            "metrics": report.metrics,
            "epochs": None if result is None else result.epochs,
            "best_epoch": None if result is None else result.best_epoch,
            "history": None if result is None else [asdict(made) for made in result.history],
            "stopped_by": None if result is None else result.stopped_by,
            "training_s": None if result is None else result.seconds,
            "seconds": seconds,
            "release": None if release is None else release.version,
            "model": asdict(report.config),
            "training": None if result is None else asdict(command.settings.training),
            "data": data,
        },
    )
    CommandConsole().print(
        metrics_table(
            {
                f"{split}: {method}": metrics
                for split, methods in report.metrics.items()
                for method, metrics in methods.items()
            }
        )
    )
    print(
        f"{command.data.name}: {data['events']} events, {data['users']} users "
        f"({data['ranked_users']} ranked for), {data['items']} items; {seconds:.1f} s"
    )
    if data["items_unknown_to_release"]:
        print(f"{data['items_unknown_to_release']} items are unknown to the release")
    return 0
