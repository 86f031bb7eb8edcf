"""Environment variables as flags of lower precedence.

`LRUREC_KAFKA__BOOTSTRAP_SERVERS=x` means `--kafka.bootstrap-servers=x`, put before the flags of the
command line, so that one parser does the rest and flags win. The reverse, settings as flags, lets a
command start another one with the settings it has itself. Knows no setting by name: everything is
read off the dataclasses that it is given.
"""

import difflib
import re
from collections.abc import Iterator, Mapping
from dataclasses import fields, is_dataclass
from typing import Any

from pipeline.errors import SettingsInvalid

PREFIX = "LRUREC_"
_SERVICE_LINK = re.compile(
    r"_SERVICE_(HOST|PORT(_\w+)?)=|_PORT_\d+_(TCP|UDP|SCTP)(_\w+)?=|_PORT=(tcp|udp|sctp)://"
)
"""Variables that Kubernetes sets in every container for a service named lrurec-something."""


def settings_fields(section: object, path: tuple[str, ...] = ()) -> Iterator[tuple[str, Any]]:
    """Yield the dotted name and the value of every setting of a dataclass of dataclasses."""
    for field in fields(section):  # type: ignore[arg-type]  # a dataclass instance, by contract
        value = getattr(section, field.name)
        if is_dataclass(value):
            yield from settings_fields(value, (*path, field.name))
        else:
            yield ".".join((*path, field.name)), value


def variable_name(setting: str) -> str:
    """Return the variable of a setting: `log.level` -> `LRUREC_LOG__LEVEL`."""
    return PREFIX + setting.upper().replace(".", "__")


def flag_name(setting: str) -> str:
    """Return the flag of a setting: `log.level` -> `--log.level`."""
    return "--" + setting.replace("_", "-")


def environment_flags(environ: Mapping[str, str], settings: object) -> list[str]:
    """Translate the `LRUREC_*` variables into flags.

    Values travel whole (`--flag=value`), so spaces, commas, a leading dash and the empty text
    arrive as they are.

    Args:
        environ: Names and values; those without the prefix are ignored.
        settings: Any instance of the settings; it tells which names exist.

    Raises:
        SettingsInvalid: A variable with the prefix names no setting, nor a service of Kubernetes;
            the nearest is told.
    """
    known = {variable_name(name): flag_name(name) for name, _ in settings_fields(settings)}
    flags = []
    for name in sorted(name for name in environ if name.startswith(PREFIX)):
        if name not in known:
            if _SERVICE_LINK.search(f"{name}={environ[name]}"):
                continue
            near = difflib.get_close_matches(name, known, n=1, cutoff=0.0)[0]
            msg = f"environment variable {name}: no such setting; nearest is {near}"
            raise SettingsInvalid(msg)
        flags.append(f"{known[name]}={environ[name]}")
    return flags
