"""What `--json FILE` writes: the result of a command, for other programs."""

import json
from collections.abc import Mapping
from pathlib import Path
from typing import Any

from pipeline.errors import SettingsInvalid


def write_json_report(path: Path | None, report: Mapping[str, Any]) -> None:
    """Write a report as one JSON object; None as path writes nothing.

    Raises:
        SettingsInvalid: The file cannot be written.
    """
    if path is None:
        return
    text = json.dumps(report, indent=2, ensure_ascii=False, default=str)
    try:
        path.write_text(text + "\n", encoding="utf-8")
    except OSError as exc:
        msg = f"--json must name a file that can be written, got {path}: {exc}"
        raise SettingsInvalid(msg) from exc
