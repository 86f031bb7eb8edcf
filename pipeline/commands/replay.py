"""`lrurec replay`: a file of interactions into the topic."""

import math
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from pipeline.errors import SettingsInvalid
from pipeline.json_report import write_json_report
from pipeline.setting_checks import check
from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Send a file of interactions into the topic, oldest first."""

    file: tyro.conf.Positional[Path]
    """Interactions: csv, tsv or parquet with user,item,timestamp[,event_type], or .seq.txt; .gz."""

    rate: float | None = None
    """Events per second; None: as fast as Kafka takes them."""

    from_fraction: float = 0.0
    """Where to begin, as a share of the file's rows by time."""

    to_fraction: float = 1.0
    """Where to end, likewise."""

    json: Path | None = None
    """File to write the result to: records, seconds, rate, last_offsets by partition."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        if not 0 <= self.from_fraction <= self.to_fraction <= 1:
            msg = (
                "from-fraction and to-fraction must be in [0, 1], from not after to, "
                f"got {self.from_fraction} and {self.to_fraction}"
            )
            raise SettingsInvalid(msg)
        is_rate = self.rate is None or 0 < self.rate < math.inf
        check(is_rate, "--rate", "over 0 and finite", self.rate)


def run(command: Command) -> int:
    """Send, with a progress bar where stderr is a terminal."""
    from rich.progress import Progress  # here and below: only for those who run

    from pipeline.console import CommandConsole
    from pipeline.files.interactions import read_interactions, require_event_types
    from pipeline.replay import replay

    interactions = read_interactions(command.file)
    require_event_types(command.file, interactions, command.settings.fields.accepted_event_types)
    start = int(len(interactions) * command.from_fraction)
    stop = int(len(interactions) * command.to_fraction)
    console = CommandConsole(stderr=True)
    with Progress(console=console, transient=True, disable=not console.is_terminal) as progress:
        bar = progress.add_task(command.settings.topics.interactions, total=stop - start)
        report = replay(
            command.settings,
            interactions,
            start=start,
            stop=stop,
            rate=command.rate,
            on_progress=lambda delivered: progress.update(bar, completed=delivered),
        )
    print(
        f"{report.records} events into {command.settings.topics.interactions} "
        f"in {report.seconds:.1f} s ({report.rate:.0f} events/s)"
    )
    write_json_report(
        command.json,
        {
            "file": command.file,
            "records": report.records,
            "seconds": report.seconds,
            "rate": report.rate,
            "last_offsets": report.last_offsets,
        },
    )
    return 0
