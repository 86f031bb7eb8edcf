"""Kinds of values that a flag may have beyond the plain ones."""

import csv
import io
from collections.abc import Sequence
from typing import Annotated

from tyro.constructors import PrimitiveConstructorSpec


def split_names(text: str) -> tuple[str, ...]:
    """Return the names of one argument."""
    try:
        row = next(csv.reader([text], skipinitialspace=True, strict=True), [])
    except csv.Error as error:
        msg = f"expected names separated by commas, got {text!r} ({error})"
        raise ValueError(msg) from error
    return tuple(name.strip() for name in row)


def join_names(names: Sequence[str]) -> str:
    """Return the argument that names these."""
    line = io.StringIO()
    csv.writer(line, lineterminator="").writerow(names)
    return line.getvalue()


Names = Annotated[
    tuple[str, ...],
    PrimitiveConstructorSpec(
        nargs=1,
        metavar="A,B,...",
        instance_from_str=lambda args: split_names(args[0]),
        is_instance=lambda value: isinstance(value, tuple),
        str_from_instance=lambda names: [join_names(names)],
    ),
]
"""Names in one argument, separated by commas; a name with a comma stands in double quotes."""


def _parse_switch(args: Sequence[str]) -> bool:
    if list(args) not in ([], ["True"], ["False"]):
        msg = f"expected nothing, True or False, got {' '.join(args)}"
        raise ValueError(msg)
    return list(args) != ["False"]


Switch = Annotated[
    bool,
    PrimitiveConstructorSpec(
        nargs="*",
        metavar="[True|False]",
        instance_from_str=_parse_switch,
        is_instance=lambda value: isinstance(value, bool),
        str_from_instance=lambda value: [str(value)],
    ),
]
"""A command's own flag, on by its name alone: `--all` is `--all True`."""
