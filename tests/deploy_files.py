"""The files of deploy/, for the tests that hold them against the product."""

from pathlib import Path
from typing import Any

import yaml

DEPLOY = Path(__file__).parents[1] / "deploy"


def read_yaml(name: str) -> dict[str, Any]:
    """Parse a file of deploy/ that holds one document."""
    content = yaml.safe_load((DEPLOY / name).read_text(encoding="utf-8"))
    assert isinstance(content, dict)
    return content
