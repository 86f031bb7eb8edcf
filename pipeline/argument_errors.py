"""What the parser of arguments says of wrong ones, as one line: it draws a box of several."""

import re
from collections.abc import Sequence
from itertools import groupby

_COLOUR = re.compile(r"\x1b\[[0-9;]*m")
_RULE = re.compile(r"[─-]*")
_SECTION = re.compile(r"Error parsing settings\.(\w+): (?=\w)")
_NEAREST = re.compile(r"(?:Perhaps you meant|Arguments similar to \S+): (--[\w.-]+)")
_PASSWORD = re.compile(r"-.*pass(?!word[-_]file$)", re.IGNORECASE)


def without_passwords(arguments: Sequence[str]) -> list[str]:
    """Return arguments that errors may quote: what follows an option like --password is hidden.

    There is no such option, so it is one by mistake; a password is read from a file.
    """
    shown: list[str] = []
    is_password = False
    for word in arguments:
        name, equals, _ = word.partition("=")
        is_option = not is_password and bool(_PASSWORD.match(name))
        shown.append("***" if is_password else f"{name}=***" if is_option and equals else word)
        is_password = is_option and not equals
    return shown


def in_one_line(drawn: str) -> str:
    """Return what a box says is wrong and which flags may have been meant; its help is left out.

    Whatever else is given is returned with its lines joined.
    """
    wrong, *others = _parts(drawn) or [" ".join(drawn.split())]
    nearest = {match[1] for match in map(_NEAREST.match, others) if match}
    meant = f"; perhaps you meant {', '.join(sorted(nearest))}" if nearest else ""
    # A setting is named as those sections name it that check themselves.
    return _SECTION.sub(r"\1.", wrong.removesuffix(".")) + meant


def _parts(drawn: str) -> list[str]:
    """Return the texts between a box's ruled lines, each on one line, without the box's title."""
    texts = [line.strip(" │╰╯") for line in _COLOUR.sub("", drawn).splitlines()[1:]]
    groups = groupby(texts, key=lambda text: bool(_RULE.fullmatch(text)))
    return [" ".join(" ".join(lines).split()) for is_rule, lines in groups if not is_rule]
