"""A training for people: a bar while it runs, a table of what it reached."""

import logging
from collections.abc import Callable, Iterator, Mapping
from contextlib import contextmanager

from rich.progress import Progress, TaskID, TextColumn
from rich.table import Table

from models.evaluation import METRIC_KS
from models.training.result import TrainingProgress
from pipeline.console import CommandConsole
from pipeline.training.sequences import ReadProgress

_log = logging.getLogger(__name__)


@contextmanager
def training_bar() -> Iterator[Callable[[ReadProgress | TrainingProgress], None]]:
    """Show reading and epochs on stderr; where that is no terminal, log a line an epoch.

    Yields:
        What to call with how far the training is.
    """
    console = CommandConsole(stderr=True)
    bar = Progress(
        *Progress.get_default_columns(),
        TextColumn("{task.fields[note]}"),
        console=console,
        disable=not console.is_terminal,
        transient=True,
    )
    tasks: dict[str, TaskID] = {}

    def show(name: str, done: int, total: int, note: str) -> None:
        if name not in tasks:
            tasks[name] = bar.add_task(name, total=total, note="")
        bar.update(tasks[name], description=name, completed=done, total=total, note=note)

    def on_progress(progress: ReadProgress | TrainingProgress) -> None:
        if isinstance(progress, ReadProgress):
            show("reading", progress.done, progress.total, "")
            return
        best = "-" if progress.best_recall is None else f"{progress.best_recall:.4f}"
        note = (
            f"epoch {progress.epoch}, loss {progress.loss:.3f}, "
            f"{progress.samples_per_s:.0f} samples/s, best Recall@10 {best}"
        )
        show("training", progress.step, progress.steps, note)
        if bar.disable and progress.step == progress.steps:
            _log.info("%s", note)

    with bar:
        yield on_progress


def metrics_table(methods: Mapping[str, Mapping[str, float]]) -> Table:
    """Lay out the metrics of `models.evaluation.ranking_metrics`, a column for each method."""
    table = Table("", *methods)
    for metric, label in (("recall", "Recall"), ("ndcg", "NDCG")):
        for k in METRIC_KS:
            values = (one[f"{metric}@{k}"] for one in methods.values())
            table.add_row(f"{label}@{k}", *(f"{value:.4f}" for value in values))
    table.add_row("MRR", *(f"{one['mrr']:.4f}" for one in methods.values()))
    return table
