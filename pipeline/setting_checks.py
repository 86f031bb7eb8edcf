"""Rules that settings are held to; whatever breaks one is told in a line."""

import math
import re
from collections.abc import Mapping

from pipeline.errors import SettingsInvalid


def check(holds: bool, name: str, rule: str, value: object) -> None:
    """Refuse a value that breaks its rule.

    Raises:
        SettingsInvalid: It does not hold.
    """
    if not holds:
        msg = f"{name} must be {rule}, got {value!r}"
        raise SettingsInvalid(msg)


def check_positive(section: str, values: Mapping[str, float | None]) -> None:
    """Refuse values of a section that are not finite and over 0; None is allowed."""
    for name, value in values.items():
        holds = value is None or (math.isfinite(value) and value > 0)
        check(holds, f"{section}.{name}", "over 0", value)


def check_port(name: str, port: int) -> None:
    """Refuse what is no port; 0 is one."""
    check(0 <= port <= 65535, name, "a port, 0 to 65535", port)


def check_device(name: str, device: str) -> None:
    """Refuse what names no device."""
    legal = re.fullmatch(r"auto|cpu|cuda(:\d+)?", device)
    check(bool(legal), name, "auto, cpu, cuda or cuda:N", device)
