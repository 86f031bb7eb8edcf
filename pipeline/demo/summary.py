"""What a demo came to: promises with what shows that they held, figures, and its JSON."""

from collections.abc import Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.demo.data import DemoData
from pipeline.demo.figures import Figures
from pipeline.demo.screen import mark
from pipeline.demo.view import latency_text, number, percent, recall_text
from pipeline.printable import printable
from pipeline.replay import ReplayReport
from pipeline.training.job import TrainingReport
from pipeline.verification.report import VerifyReport
from pipeline.verification.states import STATE_TOLERANCE


@dataclass(frozen=True, kw_only=True)
class Promise:
    """One promise, whether it was kept, and what shows it."""

    name: str
    kept: bool
    shown_by: str


@dataclass(frozen=True, kw_only=True)
class DemoReport:
    """Everything that a demo found.

    Attributes:
        data: What was replayed.
        history: The replay of the first part.
        training: The training on it.
        catch_up: The worker's figures while it caught up.
        live_rate: Events per second that the rest was to be sent with.
        live_replay: The replay of the rest.
        live: The worker's figures meanwhile.
        verified: What verify says.
        top_k: Items that a list is to have.
        worker_exit_code: How the worker ended when it was told to.
        seconds: How long all of it took.
    """

    data: DemoData
    history: ReplayReport
    training: TrainingReport
    catch_up: Figures
    live_rate: float
    live_replay: ReplayReport
    live: Figures
    verified: VerifyReport
    top_k: int
    worker_exit_code: int
    seconds: float

    @property
    def holds(self) -> bool:
        """Whether every promise was kept."""
        return self.verified.holds and all(promise.kept for promise in self.promises)

    @property
    def promises(self) -> Sequence[Promise]:
        """Every promise."""
        found = self.verified
        offsets, outputs = found.offsets, found.outputs
        stale = found.stale + self.live.stale + self.catch_up.stale
        most = min(self.top_k, self.training.release.vocabulary.n_items)
        return (
            Promise(
                name="a state is its offline scan",
                kept=not (found.states_different or found.rows_wrong) and found.states > 0,
                shown_by=f"{number(found.states)} states, largest difference "
                f"{found.max_abs_diff:.0e} (at most {STATE_TOLERANCE:.0e})",
            ),
            Promise(
                name="each event counts once, none is lost",
                kept=not (offsets.missing or offsets.pending or found.dead_letters_wrong),
                shown_by=f"{number(offsets.applied)} applied, {number(offsets.duplicate)} repeats, "
                f"{number(offsets.skipped)} of other kinds, {number(offsets.dead)} dead letters, "
                f"{number(offsets.missing + offsets.pending)} missing",
            ),
            Promise(
                name="never a stale state",
                kept=not stale,
                shown_by=f"{number(stale)} of {number(outputs.lists)} lists made by other weights "
                "than they name",
            ),
            Promise(
                name=f"always {most} items",
                kept=not outputs.short,
                shown_by=f"{number(outputs.short)} of {number(outputs.checked)} lists are shorter",
            ),
            Promise(
                name="every user is answered, and well",
                kept=not (outputs.missing or outputs.wrong),
                shown_by=f"{number(found.users)} users, {number(outputs.missing)} without their "
                f"last answer, {number(outputs.wrong)} lists not well made",
            ),
            Promise(
                name="a worker stops when told",
                kept=self.worker_exit_code == 0,
                shown_by=f"exit code {self.worker_exit_code}",
            ),
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` writes."""
        metrics, rows = self.training.metrics, self.data.interactions
        return {
            "holds": self.holds,
            "finished": True,
            "promises": [asdict(promise) for promise in self.promises],
            "data": {
                "name": self.data.name,
                "events": len(rows),
                "users": len(rows.user_ids),
                "items": len(rows.item_ids),
            },
            "replay": _replay_json(self.history),
            "training": {
                "version": self.training.release.version,
                "epochs": self.training.epochs,
                "best_epoch": self.training.best_epoch,
                "stopped_by": self.training.stopped_by,
                "seconds": self.training.training_s,
                "refused": self.training.refused,
                "metrics": {name: dict(values) for name, values in metrics.items()},
            },
            "catch_up": _figures_json(self.catch_up),
            "live": {
                **_figures_json(self.live),
                "wanted_rate": self.live_rate,
                "replay": _replay_json(self.live_replay),
            },
            "worker_exit_code": self.worker_exit_code,
            "verify": self.verified.to_json(),
            "seconds": self.seconds,
        }


def _figures_json(figures: Figures) -> dict[str, Any]:
    """Return the figures; null for a latency that is too long to be told."""
    return {
        name: None if value == float("inf") else value for name, value in asdict(figures).items()
    }


def _replay_json(report: ReplayReport) -> dict[str, Any]:
    return {"records": report.records, "seconds": report.seconds, "rate": report.rate}


def print_summary(
    report: DemoReport, console: Console, *, logs: Sequence[Path], hints: Sequence[tuple[str, str]]
) -> None:
    """Print promises, figures, where the logs are and what to try next.

    Args:
        report: What was found.
        console: Where to; a terminal gets tables, anything else lines.
        logs: Files to look at.
        hints: Commands and what each is for.
    """
    kept = Text(f"{mark(console, kept=True)} ", "green")
    broken = Text(f"{mark(console, kept=False)} ", "bold red")
    console.print()
    promises = [
        ((kept if one.kept else broken) + Text(one.name), one.shown_by) for one in report.promises
    ]
    _print_rows(console, "Promises", promises)
    for finding in report.verified.findings:
        console.print(Text("  ") + broken + Text(f"{finding}", "red"), soft_wrap=True)
    if report.verified.findings:
        console.print()
    _print_rows(console, "Figures", [(Text(name), text) for name, text in _figures(report)])
    _print_rows(console, "Logs", [(Text(path.stem), str(path)) for path in logs])
    console.print(Text("Try next", "bold"))
    for command, purpose in hints:
        console.print(Text(f"  {printable(command)}"), soft_wrap=True)
        console.print(Text(f"      {purpose}", "dim"), soft_wrap=True)
    console.print()
    took = f"{report.seconds:.0f} s"
    if report.holds:
        console.print(Text(f"Every promise held ({took}).", "bold green"))
    else:
        console.print(Text(f"Not every promise held ({took}).", "bold red"))


def _print_rows(console: Console, title: str, rows: Sequence[tuple[Text, str]]) -> None:
    console.print(Text(title, "bold"))
    if console.is_terminal:
        grid = Table.grid(padding=(0, 2, 0, 0), pad_edge=True)
        grid.add_column(width=0)
        grid.add_column(no_wrap=True)
        grid.add_column()
        for left, right in rows:
            grid.add_row("", left, Text(right))
        console.print(grid)
    else:
        for left, right in rows:
            console.print(Text("  ") + left + Text(f": {right}"), soft_wrap=True)
    console.print()


def _figures(report: DemoReport) -> list[tuple[str, str]]:
    training, live = report.training, report.live
    model, popular = (training.metrics[name]["recall@10"] for name in ("model", "popularity"))
    rows = [
        (
            "history replayed",
            f"{number(report.history.records)} events at {number(report.history.rate)} events/s",
        ),
        (
            "trained",
            f"{training.epochs:.1f} epochs in {training.training_s:.0f} s, Recall@10 on held-out "
            f"last items {percent(model)}, popularity {percent(popular)}",
        ),
        ("worker caught up", f"{number(report.catch_up.rate)} events/s"),
        (
            "live",
            f"{number(live.answered)} events at {number(report.live_replay.rate)} events/s",
        ),
        ("event to recommendation", latency_text(live)),
        (f"live Recall@{report.top_k}", recall_text(live)),
    ]
    if training.refused is not None:
        rows.append(("served all the same", f"the release was refused: {training.refused}"))
    return rows
