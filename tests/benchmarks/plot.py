"""Lines over logarithmic axes as SVG, which any browser shows; needs no plotting library."""

import math
from collections.abc import Mapping, Sequence
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, HEIGHT = 720, 420
LEFT, RIGHT, TOP, BOTTOM = 64, 190, 16, 48
COLOURS = ("#888888", "#d62728", "#1f77b4", "#17becf", "#2ca02c", "#9467bd", "#ff7f0e")


def write_line_plot(
    path: Path, lines: Mapping[str, Sequence[tuple[float, float]]], *, x: str, y: str
) -> None:
    """Draw named lines of (x, y), all above 0, with a legend.

    Args:
        path: where to write.
        lines: at least one, each with at least one point.
        x: what the horizontal axis shows.
        y: what the vertical axis shows.
    """
    points = [point for line in lines.values() for point in line]
    across = _Axis([point[0] for point in points], LEFT, WIDTH - RIGHT)
    up = _Axis([point[1] for point in points], HEIGHT - BOTTOM, TOP)
    parts = []
    for value in sorted({point[0] for point in points}):
        at = across.place(value)
        parts += [
            _line(at, TOP, at, HEIGHT - BOTTOM),
            _text(at, HEIGHT - BOTTOM + 16, f"{value:g}"),
        ]
    for value in up.ticks():
        at = up.place(value)
        parts += [
            _line(LEFT, at, WIDTH - RIGHT, at),
            _text(LEFT - 6, at + 4, f"{value:g}", anchor="end"),
        ]
    for number, (name, line) in enumerate(lines.items()):
        colour = COLOURS[number % len(COLOURS)]
        way = " ".join(f"{across.place(a):.1f},{up.place(b):.1f}" for a, b in line)
        parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}" stroke-width="2"/>')
        row = TOP + 12 + 20 * number
        start = WIDTH - RIGHT + 12
        parts.append(
            f'<line x1="{start}" y1="{row}" x2="{start + 20}" y2="{row}" stroke="{colour}" '
            'stroke-width="2"/>'
        )
        parts.append(_text(start + 26, row + 4, name, anchor="start"))
    parts.append(_text((LEFT + WIDTH - RIGHT) / 2, HEIGHT - 10, x))
    middle = (TOP + HEIGHT - BOTTOM) / 2
    parts.append(f'<g transform="translate(14 {middle}) rotate(-90)">{_text(0, 0, y)}</g>')
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {HEIGHT}" '
        'font-family="sans-serif" font-size="12">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


class _Axis:
    """A logarithmic axis between two coordinates."""

    def __init__(self, values: Sequence[float], start: float, end: float) -> None:
        self.low, self.high = min(values), max(values)
        self.start, self.end = start, end

    def place(self, value: float) -> float:
        """Return the coordinate of a value."""
        if self.low == self.high:
            return (self.start + self.end) / 2
        share = math.log(value / self.low) / math.log(self.high / self.low)
        return self.start + share * (self.end - self.start)

    def ticks(self) -> list[float]:
        """Return 1, 2 and 5 times the powers of ten in between."""
        powers = range(math.floor(math.log10(self.low)), math.ceil(math.log10(self.high)) + 1)
        ticks = [digit * 10.0**power for power in powers for digit in (1, 2, 5)]
        return [tick for tick in ticks if self.low <= tick <= self.high]


def _line(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle") -> str:
    return f'<text x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}">{escape(text)}</text>'
