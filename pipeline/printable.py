"""Texts of others, such as ids, titles and errors that quote them, made fit for a terminal."""

# Blanks and joiners of many languages' titles, which Python counts as not printable.
_HARMLESS = "\u00a0\u3000\u200c\u200d"


def printable(text: str) -> str:
    """Return a text that moves no cursor, sets no title and turns no line round."""
    return "".join(one if one.isprintable() or one in _HARMLESS else "?" for one in text)


def escaped(text: str) -> str:
    """Return a text that is one line and as harmless; what was in it can still be told."""
    return "".join(
        one if one.isprintable() or one in _HARMLESS else ascii(one)[1:-1] for one in text
    )
