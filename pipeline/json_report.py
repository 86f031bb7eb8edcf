"""What `--json FILE` writes: the result of a command, for other programs."""

from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from pipeline.errors import SettingsInvalid


def write_json_report(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report as one JSON object; None as path writes nothing.

    Raises:
        SettingsInvalid: The file cannot be written.
    """
    if path is None:
        return
    # JSON knows no NaN and no infinity: they become null.
    text = msgspec.json.format(msgspec.json.encode(report, enc_hook=str), indent=2)
    try:
        path.write_bytes(text + b"\n")
    except OSError as exc:
        msg = f"--json must name a file that can be written, got {path}: {exc}"
        raise SettingsInvalid(msg) from exc
