"""The live part of the demo as a picture: figures, hit rates side by side, a few users by name."""

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass

from rich import box
from rich.console import Console, ConsoleOptions, RenderableType, RenderResult
from rich.panel import Panel
from rich.table import Table
from rich.text import Text

from pipeline.demo.figures import Figures
from pipeline.demo.users import PLACES, UserCard
from pipeline.metrics import METHODS
from pipeline.printable import printable

NAMES = {"model": "LRURec", "popularity": "popularity", "repeat_last": "repeat last"}
FIGURES = 7  # lines in each of the two panels on top
FIGURE_LINES = FIGURES + 2
CARD_LINES = 3
OTHER_LINES = 6  # the step's own line, an empty one, the border of the users, room for the cursor
SIDE_BY_SIDE = 72  # columns from which on the two panels stand side by side
NONE = "-"


def milliseconds(seconds: float | None) -> str:
    """Write a duration in milliseconds; a quantile above all buckets is infinite."""
    if seconds is None:
        return NONE
    if seconds == float("inf"):
        return "over 10 s"
    return f"{seconds * 1000:.1f} ms" if seconds < 0.01 else f"{seconds * 1000:.0f} ms"


def percent(share: float | None) -> str:
    """Write a share in percent."""
    return NONE if share is None else f"{share:.1%}"


def number(value: float | None, digits: int = 0) -> str:
    """Write a number with thousands set apart."""
    return NONE if value is None else f"{value:,.{digits}f}"


def latency_text(figures: Figures) -> str:
    """Write median and 99th percentile in a line."""
    return f"p50 {milliseconds(figures.p50_s)}, p99 {milliseconds(figures.p99_s)}"


def recall_text(figures: Figures) -> str:
    """Write the hit rates in a line."""
    return ", ".join(f"{NAMES[method]} {percent(figures.recall[method])}" for method in METHODS)


@dataclass(frozen=True, kw_only=True)
class LiveView:
    """What is drawn below the progress of the live part; looks at its sources at every refresh.

    Args:
        recent: Figures of the last seconds.
        whole: Figures since the live part began.
        cards: Users in view.
        titles: Item id -> title; ids stand in for what is missing.
        top_k: Items in a list.
    """

    recent: Callable[[], Figures]
    whole: Callable[[], Figures]
    cards: Callable[[], Sequence[UserCard]]
    titles: Mapping[str, str]
    top_k: int

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        top = Table.grid(expand=True, padding=0)
        panels = [speed_panel(self.recent()), recall_panel(self.whole(), self.top_k)]
        if options.max_width >= SIDE_BY_SIDE:
            top.add_column(ratio=1)
            top.add_column(ratio=1)
            top.add_row(*panels)
            lines = FIGURE_LINES
        else:
            for panel in panels:
                top.add_row(panel)
            lines = 2 * FIGURE_LINES
        yield top
        room = min(PLACES, (console.height - lines - OTHER_LINES) // CARD_LINES)
        if room > 0:
            yield users_panel(self.cards()[:room], self.titles, places=room)


def speed_panel(figures: Figures) -> Panel:
    """Draw what the stream does now."""
    rows = Table.grid(expand=True, padding=(0, 1))
    rows.add_column(ratio=1, no_wrap=True, overflow="ellipsis")
    rows.add_column(justify="right", no_wrap=True)

    def add(name: str, value: str, style: str = "") -> None:
        rows.add_row(Text(name), Text(value, style))

    add("events/s", number(figures.rate), "bold cyan")
    add("p50 to recommendation", milliseconds(figures.p50_s), "bold cyan")
    add("p99 to recommendation", milliseconds(figures.p99_s), "bold cyan")
    add("waiting events", number(figures.lag))
    add("events per batch", number(figures.batch_events))
    add("time per batch", milliseconds(figures.batch_s))
    rows_made = number(figures.checkpoint_rows)
    add("checkpoint", f"{rows_made} rows, {milliseconds(figures.checkpoint_s)}")
    return _panel(rows, "the last ten seconds", FIGURE_LINES)


def recall_panel(figures: Figures, top_k: int) -> Panel:
    """Draw how often the list before an event held its item, for the model and the baselines."""
    rows = Table.grid(expand=True, padding=(0, 1))
    rows.add_column(width=max(map(len, NAMES.values())))
    rows.add_column(justify="right", width=6)
    rows.add_column(ratio=1)
    highest = max((figures.recall[method] or 0.0 for method in METHODS), default=0.0)
    for method in METHODS:
        share, style = figures.recall[method], "green" if method == "model" else "dim"
        part = (share or 0.0) / highest if highest else 0.0
        rows.add_row(
            Text(NAMES[method], "bold" if method == "model" else ""),
            Text(percent(share), "bold green" if method == "model" else ""),
            _Bar(part, style),
        )
    note = f"Share of {number(figures.judged)} events whose item was in the list of {top_k} before."
    grid = Table.grid(expand=True)
    for row in (rows, Text(), Text(note, "dim")):
        grid.add_row(row)
    return _panel(grid, f"live Recall@{top_k}", FIGURE_LINES)


@dataclass(frozen=True)
class _Bar:
    """A horizontal bar over a share of the width."""

    share: float
    style: str

    def __rich_console__(self, console: Console, options: ConsoleOptions) -> RenderResult:
        full = "━" if console.encoding.startswith("utf") else "="
        yield Text(full * round(self.share * options.max_width), self.style)


def users_panel(cards: Sequence[UserCard], titles: Mapping[str, str], *, places: int) -> Panel:
    """Draw a few users; as high with few as with many."""
    rows = Table.grid(expand=True)
    rows.add_column(no_wrap=True, overflow="ellipsis")
    for card in cards:
        rows.add_row(
            Text.assemble(
                (printable(card.user), "bold"), (f"  {number(card.events)} events", "dim")
            )
        )
        rows.add_row(_last_items(card, titles))
        rows.add_row(_recommended(card, titles))
    for _ in range(CARD_LINES * (places - len(cards))):
        rows.add_row(Text())
    return _panel(rows, "a few users")


def _last_items(card: UserCard, titles: Mapping[str, str]) -> Text:
    text = Text("  last  ", "dim")
    for nth, item in enumerate(card.last):
        was_expected = card.events - 1 - nth in card.expected
        text.append(" · " if nth else "", "dim")
        if was_expected:
            text.append("✓ ", "bold green")
        text.append(_title(item, titles), "green" if was_expected else "")
    return text


def _recommended(card: UserCard, titles: Mapping[str, str]) -> Text:
    text = Text("  next  ", "dim")
    for nth, item in enumerate(card.recommended):
        text.append(" · " if nth else "", "dim")
        text.append(_title(item, titles), "cyan")
    return text


def _title(item: str, titles: Mapping[str, str]) -> str:
    return printable(titles.get(item, item))


def user_line(card: UserCard, titles: Mapping[str, str]) -> str:
    """Write a user in a plain line."""
    had = " | ".join(_title(item, titles) for item in card.last[:2])
    following = " | ".join(_title(item, titles) for item in card.recommended[:3])
    user = f"user {printable(card.user)} after {number(card.events)} events"
    return f"{user}: last {had}; next: {following}"


def _panel(content: RenderableType, title: str, height: int | None = None) -> Panel:
    return Panel(
        content,
        title=Text(title, "dim"),
        title_align="left",
        box=box.ROUNDED,
        border_style="dim",
        height=height,
    )
