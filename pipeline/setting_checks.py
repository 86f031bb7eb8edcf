"""Rules that settings are held to; whatever breaks one is told in a line."""

import math
import os
import re
from collections.abc import Mapping
from pathlib import Path

from pipeline.errors import SettingsInvalid

LONGEST_WAIT_S = 1_000_000.0
"""11 days. Kafka's protocol and waits of the system count milliseconds in 32 bits, and two of these
times may be added."""
INT32_MAX = 2**31 - 1
"""Largest number of a field of Kafka's protocol."""


def check(holds: bool, name: str, rule: str, value: object) -> None:
    """Refuse a value that breaks its rule.

    Raises:
        SettingsInvalid: It does not hold.
    """
    if not holds:
        shown = str(value) if isinstance(value, Path) else value
        msg = f"{name} must be {rule}, got {shown!r}"
        raise SettingsInvalid(msg)


def check_positive(
    section: str, values: Mapping[str, float | None], most: float = math.inf
) -> None:
    """Refuse values of a section that are not finite, over 0 and up to `most`; None is allowed."""
    rule = "over 0" if most == math.inf else f"over 0 and at most {most:.0f}"
    for name, value in values.items():
        holds = value is None or (0 < value < math.inf and value <= most)
        check(holds, f"{section}.{name}", rule, value)


def check_host(name: str, host: str) -> None:
    """Refuse what is no address to listen on; a blank one would be every address there is."""
    try:
        legal = bool(host.strip() and host.encode("idna"))
    except UnicodeError:  # as it would be raised where the name is looked up
        legal = False
    check(legal, name, "an address", host)


def check_port(name: str, port: int) -> None:
    """Refuse what is no port; 0 is one."""
    check(0 <= port <= 65535, name, "a port, 0 to 65535", port)


def check_device(name: str, device: str) -> None:
    """Refuse what names no device."""
    legal = re.fullmatch(r"auto|cpu|cuda(:[0-9]{1,2})?", device)
    check(bool(legal), name, "auto, cpu, cuda or cuda:N", device)


def check_output_file(flag: str, path: Path | None) -> None:
    """Refuse what cannot be written as a file: known before the work whose result goes there."""
    if path is None:
        return
    there = os.path.lexists(path)
    if os.path.isdir(path):
        why = "it is a folder"
    elif not there and not os.path.isdir(path.parent):
        why = f"there is no folder {path.parent}"
    elif not os.access(path if there else path.parent, os.W_OK):
        why = "it may not be written"
    else:
        return
    msg = f"{flag} must name a file that can be written, got {path}: {why}"
    raise SettingsInvalid(msg)
