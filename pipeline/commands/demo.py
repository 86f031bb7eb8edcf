"""`lrurec demo`: the whole loop on bundled or given data."""

import io
import math
import shlex
import sys
from collections.abc import Iterator, Sequence
from contextlib import contextmanager, suppress
from dataclasses import dataclass, field
from pathlib import Path

from pipeline.json_report import write_json_report
from pipeline.setting_checks import check
from pipeline.setting_kinds import join_names
from pipeline.settings import Settings, SettingsFlags

FOLDER = Path(".lrurec/demo")


@dataclass(frozen=True, kw_only=True)
class Command:
    """Run the whole loop on real data and prove its promises; exits with 0 only if all held.

    Starts a Kafka of its own, replays the first 80 % of the data, trains on the topic, starts a
    worker, replays the rest live, verifies every state, and stops what it started. Everything that
    it writes is in .lrurec/demo, and is removed by the next run.
    """

    data: Path | None = None
    """Interactions: csv, tsv or parquet with user,item,timestamp[,event_type], or .seq.txt; .gz.
    None: the Online Retail data that comes with the package."""

    items: Path | None = None
    """Titles of the items: csv or tsv with item,title."""

    rate: float | None = None
    """Events per second of the live part; None: so that it takes a minute or more."""

    json: Path | None = None
    """File to write the result to: verify's, rates, latencies, hit rates and baselines."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        is_rate = self.rate is None or 0 < self.rate < math.inf
        check(is_rate, "--rate", "over 0 and finite", self.rate)


def run(command: Command) -> int:
    """Run it; 0 if every promise held, else 1."""
    from pipeline.console import CommandConsole  # here and below: only for those who run
    from pipeline.demo.data import read_demo_data
    from pipeline.demo.guard import unwound_by_hang_up
    from pipeline.demo.screen import Screen

    write_json_report(command.json, {"holds": False, "finished": False})  # now, not at the end
    if isinstance(sys.stdout, io.TextIOWrapper):
        sys.stdout.reconfigure(errors="replace")  # titles and marks, whatever the terminal can show
    screen = Screen(CommandConsole(highlight=False))
    with unwound_by_hang_up(), _told_if_interrupted():
        with screen.step("data", "reading") as step:
            data = read_demo_data(command.data, command.items)
            from pipeline.demo import run as demo  # torch, seconds: under the spinner
            from pipeline.demo import summary

            step.result = data.describe()
        report = demo.run_demo(command.settings, screen, data, rate=command.rate, folder=FOLDER)
        write_json_report(command.json, report.to_json())
        release = report.training.release
        hints = _hints(release.path, release.vocabulary.item_ids)
        logs = demo.log_files(FOLDER)
        summary.print_summary(report, screen.console, logs=logs, hints=hints)
        return 0 if report.holds else 1


def _hints(release: Path, item_ids: Sequence[str]) -> list[tuple[str, str]]:
    """Return commands to try next and what each is for."""
    own = Path(sys.executable).with_name("lrurec")
    lrurec = str(own.relative_to(Path.cwd())) if own.is_relative_to(Path.cwd()) else "lrurec"
    history = shlex.quote(join_names(item_ids[:3]))
    return [
        ("make demo DATA=clicks.csv ITEMS=titles.csv", "the same on your own data"),
        (
            f"{lrurec} score --release {release} --history {history}",
            "what the demo's model recommends after some items, by scan and by steps",
        ),
        (
            f"{lrurec} broker start && {lrurec} topics create && {lrurec} worker",
            "a worker to send events to (a Kafka of your own: --kafka.bootstrap-servers)",
        ),
    ]


@contextmanager
def _told_if_interrupted() -> Iterator[None]:
    try:
        yield
    except (KeyboardInterrupt, SystemExit):
        with suppress(OSError):  # the terminal may be what is gone
            print("lrurec demo: interrupted; everything it started is stopped", file=sys.stderr)
        raise
