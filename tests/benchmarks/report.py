"""What every benchmark prints and writes: machine, versions, commit, medians."""

import json
import os
import platform
import statistics
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from importlib.metadata import PackageNotFoundError, version
from pathlib import Path
from typing import Any

PACKAGES = ("torch", "numpy", "faust-streaming", "aiokafka", "rocksdict")


def machine() -> dict[str, Any]:
    """What the figures were measured on; None for what is not installed, or no checkout."""
    command = ["git", "rev-parse", "--short", "HEAD"]
    commit = ""
    with suppress(OSError):  # no git
        commit = subprocess.run(command, capture_output=True, text=True, check=False).stdout
    return {
        "machine": platform.platform(),
        "cpus": os.cpu_count(),
        "load_1m": round(os.getloadavg()[0], 1),
        "python": platform.python_version(),
        **{package: _version(package) for package in PACKAGES},
        "commit": commit.strip() or None,
    }


def _version(package: str) -> str | None:
    try:
        return version(package)
    except PackageNotFoundError:
        return None


def spread(values: Sequence[float]) -> str:
    """Median, with the smallest and the largest."""
    return f"{statistics.median(values):.2f} ({min(values):.2f} to {max(values):.2f})"


def write_json(path: Path | None, figures: dict[str, Any]) -> None:
    """Write the figures with what they were measured on; nothing without a path."""
    if path is not None:
        path.write_text(json.dumps({"on": machine(), **figures}, indent=2) + "\n")


def print_table(head: Sequence[str], rows: Sequence[Sequence[object]]) -> None:
    """Print rows below their head: names to the left, numbers to the right, in three digits."""
    lines = [head, *([_cell(value) for value in row] for row in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    for first, *others in lines:
        numbers = (f"{text:>{width}}" for text, width in zip(others, widths[1:], strict=True))
        print("  ".join((f"{first:{widths[0]}}", *numbers)), flush=True)


def _cell(value: object) -> str:
    if isinstance(value, float):
        return shown(value)
    return f"{value:,}" if type(value) is int else str(value)


def shown(value: float) -> str:
    """Write a number in three digits, or more where it is large."""
    return f"{value:,.0f}" if abs(value) >= 100 else f"{value:,.3g}"
