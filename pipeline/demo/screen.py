"""Steps one after the other, for people: live on a terminal, plain lines anywhere else.

A finished step leaves one line. On a terminal the one that runs is drawn below those, and is gone
when it is done; elsewhere its progress comes as a line every few seconds, without control
characters.
"""

import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager

from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.live import Live
from rich.progress_bar import ProgressBar
from rich.spinner import Spinner
from rich.table import Table
from rich.text import Text

LINE_PERIOD_S = 5.0
REFRESH_PER_S = 4
NAME_WIDTH = 9
BAR_WIDTH = 28
NARROW = 100  # columns; below this the bar is shorter


def mark(console: Console, *, kept: bool) -> str:
    """Return a sign for done and not done, in letters where the terminal has no others."""
    if console.encoding.startswith("utf"):
        return "✓" if kept else "✗"
    return "ok" if kept else "NO"


class Step:
    """One step, as its work tells of it; any thread may look at it.

    Attributes:
        name: What it is, in a word.
        note: Where it stands, in a few; also a function that tells when it is asked.
        done: How much of `total` is done; None where there is no telling.
        total: What there is to do.
        body: Drawn below on a terminal.
        result: What came of it.
    """

    def __init__(self, name: str, note: str | Callable[[], str]) -> None:
        self.name = name
        self.note = note
        self.done: float | None = None
        self.total: float | None = None
        self.body: RenderableType | None = None
        self.result = ""
        self.started_s = time.monotonic()
        self._on_update: Callable[[], object] = lambda: None

    @property
    def seconds(self) -> float:
        """How long it has been running."""
        return time.monotonic() - self.started_s

    def update(self, done: float, total: float) -> None:
        """Say how much is done."""
        self.done, self.total = done, total
        self._on_update()

    def describe(self) -> str:
        """Return the note as it is now."""
        return self.note if isinstance(self.note, str) else self.note()

    def on_update(self, action: Callable[[], object]) -> None:
        """Have something called at every update."""
        self._on_update = action


class Screen:
    """Where the steps are shown.

    Args:
        console: Where to.
    """

    def __init__(self, console: Console) -> None:
        self.console = console
        self._started_s = time.monotonic()

    @property
    def is_terminal(self) -> bool:
        """Whether steps are drawn; else they are told in lines."""
        return self.console.is_terminal

    @contextmanager
    def step(self, name: str, note: str | Callable[[], str]) -> Iterator[Step]:
        """Show a step for the length of a `with` block, and what came of it as one line.

        Args:
            name: What it is, in a word.
            note: Where it stands; the step's own attribute may be changed later.
        """
        step = Step(name, note)
        show = self._live if self.is_terminal else self._lines
        try:
            with show(step):
                yield step
        except BaseException:
            self._print(step, "not finished", finished=False)
            raise
        self._print(step, step.result, finished=True)

    def _print(self, step: Step, text: str, *, finished: bool) -> None:
        if not self.is_terminal:
            self._plain_line(step.name, text)
            return
        sign = mark(self.console, kept=finished)
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(width=len(sign))
        row.add_column(width=NAME_WIDTH)
        row.add_column(ratio=1)
        row.add_column(justify="right", width=8)
        row.add_row(
            Text(sign, "green" if finished else "red"),
            Text(step.name, "bold"),
            Text(text),
            Text(f"{step.seconds:.1f} s", "dim"),
        )
        self.console.print(row)

    def _plain_line(self, name: str, text: str) -> None:
        elapsed_s = time.monotonic() - self._started_s
        self.console.out(f"{elapsed_s:6.1f} s  {name}: {text}", highlight=False)
        self.console.file.flush()

    @contextmanager
    def _live(self, step: Step) -> Iterator[None]:
        with Live(
            _StepView(step), console=self.console, refresh_per_second=REFRESH_PER_S, transient=True
        ):
            yield

    @contextmanager
    def _lines(self, step: Step) -> Iterator[None]:
        printed_s, note = time.monotonic(), step.note

        def print_now_and_then() -> None:
            nonlocal printed_s
            if time.monotonic() - printed_s < LINE_PERIOD_S:
                return
            printed_s = time.monotonic()
            parts = [step.describe()]
            if step.total:
                parts.insert(0, f"{(step.done or 0) / step.total:.0%}")
            self._plain_line(step.name, ", ".join(filter(None, parts)))

        self._plain_line(step.name, f"{(isinstance(note, str) and note) or 'begins'} ...")
        step.on_update(print_now_and_then)
        yield


class _StepView:
    """A step that runs, drawn anew at every refresh."""

    def __init__(self, step: Step) -> None:
        self._step = step
        self._spinner = Spinner("dots", style="cyan")

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        step = self._step
        row = Table.grid(padding=(0, 1), expand=True)
        row.add_column(width=1)
        row.add_column(width=NAME_WIDTH)
        cells: list[RenderableType] = [self._spinner, Text(step.name, "bold")]
        if step.total:
            width = BAR_WIDTH if options.max_width >= NARROW else BAR_WIDTH // 2
            row.add_column(width=width)
            row.add_column(width=4, justify="right")
            share = (step.done or 0) / step.total
            bar = ProgressBar(total=1.0, completed=share, width=width, complete_style="cyan")
            cells += [bar, Text(f"{share:.0%}", "cyan")]
        row.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
        row.add_column(justify="right", width=8)
        row.add_row(*cells, Text(step.describe()), Text(f"{step.seconds:.0f} s", "dim"))
        yield row
        if step.body is not None:
            yield Text()
            yield step.body
