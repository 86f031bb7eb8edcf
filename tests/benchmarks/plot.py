"""Lines and bars as SVG, which any browser shows; needs no plotting library.

A line is told by its name at its end, its marks and its dashes, not by its colour alone. The
picture brings its own white ground, so that it can be read on a dark page, too.
"""

import math
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from statistics import fmean
from xml.sax.saxutils import escape

from tests.benchmarks.report import shown

WIDTH, PANEL, BAR = 760, 240, 26
LEFT, RIGHT, TOP, TITLE, GAP = 80, 56, 20, 28, 52
CHARACTER = 7.2  # of a name at 12 px, generously: nobody's font is known here
ROW = 16  # from one name to the next
MARGIN = 24  # from the lines to their names, with a mark between
COLOURS = ("#0060a8", "#b03a00", "#00704f", "#7b3f8c", "#5f5f5f", "#7a5c00", "#9c1f45")
DASHES = ("", "7 3", "2 3", "9 3 2 3")
MARKS = (
    "M-4 0a4 4 0 1 0 8 0a4 4 0 1 0 -8 0z",  # circle
    "M-3.5 -3.5h7v7h-7z",  # square
    "M0 -5l4.5 8h-9z",  # triangle
    "M0 -5l5 5l-5 5l-5 -5z",  # diamond
    "M0 5l4.5 -8h-9z",  # triangle on its tip
    "M-5 -1.5h3.5v-3.5h3v3.5h3.5v3h-3.5v3.5h-3v-3.5h-3.5z",  # cross
)
MOST_MARKS = 8  # of a line
MOST_DASHED = 60  # points of a line: dashes blur what is dense
TICKS = 4  # about so many on a linear axis

Line = Sequence[tuple[float, float]]


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines over one pair of axes.

    Attributes:
        title: What the vertical axis shows, with its unit.
        x: What the horizontal axis shows; empty: what the panel below says.
        lines: Points (x, y) by name, in the order of x; above 0 on a logarithmic axis. NaN is left
            out.
        levels: Values by name, drawn dashed over the whole width.
        log_x: Whether the horizontal axis is logarithmic; its ticks are the values there are.
        log_y: Whether the vertical axis is.
        from_zero: Whether a linear vertical axis begins at 0.
        height: Of the area of the lines, pixels; more if their names need it.
    """

    title: str
    x: str
    lines: Mapping[str, Line]
    levels: Mapping[str, float] = field(default_factory=dict)
    log_x: bool = False
    log_y: bool = False
    from_zero: bool = True
    height: int = PANEL


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers, the first at or below the low end, the last at or above the high."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(power * d for d in (1, 2, 2.5, 5, 10) if power * d * TICKS >= span)
    first = math.floor(low / step)
    return [step * n for n in range(first, max(math.ceil(high / step), first + 1) + 1)]


def log_ticks(low: float, high: float) -> list[float]:
    """Return powers of ten, or 1, 2 and 5 times them, that enclose what is above 0."""
    digits = (1, 2, 5) if high / low < 300 else (1,)
    powers = range(math.floor(math.log10(low)) - 1, math.ceil(math.log10(high)) + 2)
    every = [digit * 10.0**power for power in powers for digit in digits]
    first = max(n for n, tick in enumerate(every) if tick <= low)
    last = min(n for n, tick in enumerate(every) if tick >= high)
    return every[first : max(last, first + 1) + 1]


def spread_out(wanted: Sequence[float], apart: float, low: float, high: float) -> list[float]:
    """Move places as little as that leaves them so far apart and, if there is room, inside."""
    order = sorted(range(len(wanted)), key=lambda n: wanted[n])
    groups = list[list[float]]()  # of places that touch, each less the room that those before take
    for n, index in enumerate(order):
        groups.append([wanted[index] - n * apart])
        while len(groups) > 1 and fmean(groups[-2]) >= fmean(groups[-1]):
            groups[-2:] = [groups[-2] + groups[-1]]
    most = max(low, high - apart * (len(wanted) - 1))
    middles = [min(max(fmean(group), low), most) for group in groups for _ in group]
    places = [0.0] * len(wanted)
    for n, index in enumerate(order):
        places[index] = middles[n] + n * apart
    return places


def write_lines(path: Path, title: str, panels: Sequence[Panel]) -> None:
    """Draw the panels one below the other, and say in a line what they show."""
    names = [name for panel in panels for name in (*panel.lines, *panel.levels)]
    right = WIDTH - max(RIGHT, MARGIN + 14 + CHARACTER * max(map(len, names)))
    parts, top = list[str](), TOP + 20.0
    for panel in panels:
        top += TITLE
        height = max(panel.height, ROW * (len(panel.lines) + len(panel.levels)))
        parts += _panel(panel, right, top, top + height)
        top += height + GAP
    _write(path, title, top - 8, parts)


def write_bars(path: Path, title: str, unit: str, bars: Mapping[str, tuple[float, str]]) -> None:
    """Draw a bar for each value from 0, with its name, its value, and a remark behind it."""
    left = 24 + CHARACTER * max(map(len, bars))
    texts = [f"{shown(value)} {unit}{remark and f', {remark}'}" for value, remark in bars.values()]
    longest = max(value for value, _ in bars.values())
    width = WIDTH - 20 - CHARACTER * max(map(len, texts)) - left
    parts, top = list[str](), TOP + 36.0
    for number, ((name, (value, _)), text) in enumerate(zip(bars.items(), texts, strict=True)):
        colour, middle, long = (
            COLOURS[number % len(COLOURS)],
            top + BAR / 2,
            width * value / longest,
        )
        parts += [
            _text(left - 8, middle, name, "end"),
            f'<rect x="{left:.1f}" y="{top + 3:.1f}" width="{long:.1f}" height="{BAR - 6}" '
            f'fill="{colour}"/>',
            _text(left + long + 8, middle, text, "start"),
        ]
        top += BAR
    _write(path, title, top + 16, parts)


class _Axis:
    """What lies where between two coordinates."""

    def __init__(self, marked: Sequence[float], start: float, end: float, *, log: bool) -> None:
        self.marked, self.log = marked, log
        self.low, self.high = (self._scaled(value) for value in (marked[0], marked[-1]))
        self.start, self.end = start, end

    def _scaled(self, value: float) -> float:
        return math.log(value) if self.log else value

    def place(self, value: float) -> float:
        """Return the coordinate of a value."""
        if self.low == self.high:
            return (self.start + self.end) / 2
        share = (self._scaled(value) - self.low) / (self.high - self.low)
        return self.start + share * (self.end - self.start)


def _panel(panel: Panel, right: float, top: float, bottom: float) -> Iterable[str]:
    lines = {
        name: [point for point in line if not any(map(math.isnan, point))]
        for name, line in panel.lines.items()
    }
    points = [point for line in lines.values() for point in line] or [(1.0, 1.0)]
    xs = sorted({x for x, _ in points})
    ys = [*(y for _, y in points), *panel.levels.values()]
    if panel.log_y:
        marked = log_ticks(min(ys), max(ys))
    else:
        marked = ticks(*(f([0.0, *ys] if panel.from_zero else ys) for f in (min, max)))
    across = _Axis(xs if panel.log_x else ticks(0, xs[-1]), LEFT, right, log=panel.log_x)
    up = _Axis(marked, bottom, top, log=panel.log_y)

    yield _text(LEFT - 6, top - 18, panel.title, "start", weight="bold")
    for value in up.marked:
        yield _rule(LEFT, up.place(value), right, up.place(value))
        yield _text(LEFT - 8, up.place(value), _tick(value), "end")
    free = -math.inf  # up to here there is a number
    for value in across.marked:
        place, half = across.place(value), CHARACTER * len(_tick(value)) / 2
        yield _rule(place, top, place, bottom)
        if place - half > free:
            yield _text(place, bottom + 14, _tick(value), "middle")
            free = place + half + 4
    yield _text((LEFT + right) / 2, bottom + 31, panel.x, "middle")

    ends = [up.place(line[-1][1]) if line else bottom for line in lines.values()]
    levels = [up.place(value) for value in panel.levels.values()]
    places = spread_out([*ends, *levels], ROW, top, bottom)
    for number, ((name, line), place) in enumerate(zip(lines.items(), places, strict=False)):
        yield from _line([(across.place(x), up.place(y)) for x, y in line], number)
        yield _mark(right + MARGIN - 9, place, number)
        yield _text(right + MARGIN, place, name, "start", COLOURS[number % len(COLOURS)])
    for (name, level), place in zip(
        zip(panel.levels, levels, strict=True), places[len(ends) :], strict=True
    ):
        yield _rule(LEFT, level, right, level, "#222222", "6 4")
        yield _text(right + MARGIN, place, name, "start")


def _line(points: Sequence[tuple[float, float]], number: int) -> Iterable[str]:
    """Draw a line with its marks, evenly, the last point's among them."""
    colour = COLOURS[number % len(COLOURS)]
    dashes = DASHES[number % len(DASHES)] if len(points) <= MOST_DASHED else ""
    way = " ".join(f"{x:.1f},{y:.1f}" for x, y in points)
    yield (
        f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2" '
        f'stroke-dasharray="{dashes or "none"}"/>'
    )
    for x, y in points[:: -max(1, math.ceil(len(points) / MOST_MARKS))]:
        yield _mark(x, y, number)


def _mark(x: float, y: float, number: int) -> str:
    mark, colour = MARKS[number % len(MARKS)], COLOURS[number % len(COLOURS)]
    return f'<path d="{mark}" transform="translate({x:.1f} {y:.1f})" fill="{colour}"/>'


def _tick(value: float) -> str:
    return f"{value:,.9g}" if abs(value) < 1e9 else f"{value:g}"


def _rule(
    x1: float, y1: float, x2: float, y2: float, colour: str = "#dddddd", dashes: str = "none"
) -> str:
    place = f'x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}"'
    return f'<line {place} stroke="{colour}" stroke-dasharray="{dashes}"/>'


def _text(
    x: float, y: float, text: str, anchor: str, colour: str = "#222222", weight: str = "normal"
) -> str:
    """Write a text whose middle is at this height."""
    place = f'x="{x:.1f}" y="{y + 4:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f'<text {place} font-weight="{weight}">{escape(text)}</text>'


def _write(path: Path, title: str, height: float, parts: Iterable[str]) -> None:
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height:.0f}" role="img" '
        'font-family="DejaVu Sans, Verdana, Helvetica, Arial, sans-serif" font-size="12">\n'
        f"<title>{escape(title)}</title>\n"
        f'<rect width="{WIDTH}" height="{height:.0f}" rx="6" fill="white"/>\n'
        + "\n".join([_text(20, TOP, title, "start", weight="bold"), *parts])
        + "\n</svg>\n"
    )
