"""Figures over time as SVG, one panel above the other; needs no plotting library."""

import math
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from xml.sax.saxutils import escape

WIDTH, PANEL, GAP = 760, 120, 34
LEFT, RIGHT, TOP, BOTTOM = 64, 110, 26, 44
COLOURS = ("#1f77b4", "#d62728", "#2ca02c")
TICKS = 4  # about so many on an axis


@dataclass(frozen=True, kw_only=True)
class Panel:
    """Lines over one time axis; the other axis begins at 0.

    Attributes:
        title: What they show, with the unit.
        lines: Values by name, as many as there are times; NaN is left out.
    """

    title: str
    lines: Mapping[str, Sequence[float]]


def ticks(low: float, high: float) -> list[float]:
    """Return round numbers, the first at or below the low end, the last at or above the high."""
    span = max(high - low, abs(high) * 1e-3, 1e-9)
    power = 10.0 ** math.floor(math.log10(span / TICKS))
    step = next(power * d for d in (1, 2, 5, 10) if power * d * TICKS >= span)
    first = math.floor(low / step)
    return [step * n for n in range(first, max(math.ceil(high / step), first + 1) + 1)]


def write_timeline(path: Path, minutes: Sequence[float], panels: Sequence[Panel]) -> None:
    """Draw the panels over the minutes."""
    height = TOP + len(panels) * (PANEL + GAP) - GAP + BOTTOM
    right = WIDTH - RIGHT
    across = ticks(0, minutes[-1])

    def x(minute: float) -> float:
        return LEFT + (right - LEFT) * minute / max(minutes[-1], 1e-9)

    parts = []
    for number, panel in enumerate(panels):
        top = TOP + number * (PANEL + GAP)
        values = [v for line in panel.lines.values() for v in line if not math.isnan(v)]
        up = ticks(min([0.0, *values]), max([0.0, *values]))

        def y(value: float, top: int = top, up: Sequence[float] = up) -> float:
            return top + PANEL * (1 - (value - up[0]) / (up[-1] - up[0]))

        parts.append(_text(LEFT, top - 8, panel.title, "start"))
        for value in up:
            parts.append(_rule(LEFT, y(value), right, y(value)))
            parts.append(_text(LEFT - 6, y(value) + 4, f"{value:,.6g}", "end"))
        for minute in across:
            if minute <= minutes[-1]:
                parts.append(_rule(x(minute), top, x(minute), top + PANEL))
                if panel is panels[-1]:
                    parts.append(_text(x(minute), top + PANEL + 18, f"{minute:g}"))
        for name, colour, row in zip(panel.lines, COLOURS, range(len(COLOURS)), strict=False):
            way = " ".join(
                f"{x(minute):.1f},{y(value):.1f}"
                for minute, value in zip(minutes, panel.lines[name], strict=True)
                if not math.isnan(value)
            )
            parts.append(f'<polyline points="{way}" fill="none" stroke="{colour}"/>')
            if len(panel.lines) > 1:
                parts.append(_text(right + 8, top + 12 + 16 * row, name, "start", colour))
    parts.append(_text((LEFT + right) / 2, height - 8, "minutes"))
    path.write_text(
        f'<svg xmlns="http://www.w3.org/2000/svg" viewBox="0 0 {WIDTH} {height}" '
        'font-family="sans-serif" font-size="12">\n'
        '<rect width="100%" height="100%" fill="white"/>\n' + "\n".join(parts) + "\n</svg>\n"
    )


def _rule(x1: float, y1: float, x2: float, y2: float) -> str:
    return f'<line x1="{x1:.1f}" y1="{y1:.1f}" x2="{x2:.1f}" y2="{y2:.1f}" stroke="#dddddd"/>'


def _text(x: float, y: float, text: str, anchor: str = "middle", colour: str = "black") -> str:
    place = f'x="{x:.1f}" y="{y:.1f}" text-anchor="{anchor}" fill="{colour}"'
    return f"<text {place}>{escape(text)}</text>"
