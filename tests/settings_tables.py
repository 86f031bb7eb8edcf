"""The tables of docs/settings.md, made from the settings themselves.

    python -m tests.settings_tables

rewrites them in place, between the marks `<!-- settings: SECTION -->` and `<!-- end -->`; the text
around them is written by hand. `tests/unit/test_docs.py` fails where they are not up to date.
"""

import ast
import inspect
import re
import textwrap
import types
import typing
from dataclasses import fields
from pathlib import Path
from typing import Any

from pipeline.settings import Names, Settings

PAGE = Path(__file__).parents[1] / "docs" / "settings.md"
MARKED = re.compile(r"(<!-- settings: (\w+) -->\n).*?(<!-- end -->)", re.DOTALL)
KINDS = {int: "integer", float: "number", str: "text", bool: "True, False", Path: "path"}


def with_tables(page: str) -> str:
    """Return the page with every table made anew."""
    return MARKED.sub(lambda mark: mark[1] + table_of(mark[2]) + mark[3], page)


def table_of(section: str) -> str:
    """Return the table of one section."""
    settings = getattr(Settings(), section)
    hints = typing.get_type_hints(type(settings), include_extras=True)
    meanings = field_docstrings(type(settings))
    lines = ["| setting | default | values | meaning |", "| --- | --- | --- | --- |"]
    for field in fields(settings):
        default = getattr(settings, field.name)
        shown = "empty" if default == () else f"`{default}`"
        kind = kind_of(hints[field.name])
        lines.append(f"| `{section}.{field.name}` | {shown} | {kind} | {meanings[field.name]} |")
    return "\n".join(lines) + "\n"


def kind_of(hint: Any) -> str:
    """Return what a setting takes, in a word or as the list of its values."""
    if hint == Names:
        return "names, separated by commas"
    if typing.get_origin(hint) is typing.Literal:
        return ", ".join(f"`{value}`" for value in typing.get_args(hint))
    if typing.get_origin(hint) is types.UnionType:
        return ", ".join("`None`" if one is type(None) else kind_of(one) for one in hint.__args__)
    return KINDS[hint]


def field_docstrings(section: type) -> dict[str, str]:
    """Return the text under each field of a dataclass, on one line."""
    (body,) = ast.parse(textwrap.dedent(inspect.getsource(section))).body
    assert isinstance(body, ast.ClassDef)
    found = {}
    for above, below in zip(body.body, body.body[1:], strict=False):
        if isinstance(above, ast.AnnAssign) and isinstance(above.target, ast.Name):
            assert isinstance(below, ast.Expr)
            assert isinstance(below.value, ast.Constant)
            found[above.target.id] = " ".join(str(below.value.value).split())
    return found


if __name__ == "__main__":
    PAGE.write_text(with_tables(PAGE.read_text()))
