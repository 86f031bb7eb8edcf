"""Whatever a record that the log quotes holds, a line of the log is one line."""

import io
import json
import logging

from hypothesis import example, given
from hypothesis import strategies as st

from pipeline.log import MAX_MESSAGE, JsonFormatter, TextFormatter

FORGED = "nowhere\n2026-01-01T00:00:00.000Z CRITICAL pipeline: all is lost\x1b[2J"
LONGEST_ESCAPE = len(r"\ud800\udc00")  # in JSON; in text it is r"\U00010000"
BESIDE_THE_MESSAGE = 200  # time, level and name before it, its length behind


def _written(form: logging.Formatter, message: str) -> str:
    stream = io.StringIO()
    handler = logging.StreamHandler(stream)
    handler.setFormatter(form)
    args = (message,)
    handler.emit(logging.LogRecord("pipeline.x", logging.ERROR, "x.py", 1, "%s", args, None))
    return stream.getvalue()


@given(message=st.one_of(st.text(), st.text().map(lambda text: text * MAX_MESSAGE)))
@example(message=FORGED)
@example(message="one\u2028two\x85three\rfour")
def test_a_message_is_one_line_of_bounded_length(message: str) -> None:
    """In both formats; in text, where it may stand in a terminal, it is printable too."""
    text, as_json = _written(TextFormatter(), message), _written(JsonFormatter(), message)

    for line in (text, as_json):
        assert line.endswith("\n")
        assert len(line.splitlines()) == 1
        assert len(line) <= MAX_MESSAGE * LONGEST_ESCAPE + BESIDE_THE_MESSAGE
    assert "\x1b" not in text
    assert json.loads(as_json)["message"].startswith(message[:MAX_MESSAGE])


@given(message=st.text(st.characters(categories=["L", "M", "N", "P", "S"]), max_size=MAX_MESSAGE))
def test_a_message_that_is_fit_to_print_stays_as_it_is(message: str) -> None:
    """Escapes stand for what is not printable, for nothing else."""
    assert _written(TextFormatter(), message).endswith(f" ERROR pipeline.x: {message}\n")


def test_a_long_message_says_how_long_it_was() -> None:
    """What is cut off can be looked up where the record is."""
    line = _written(TextFormatter(), "x" * 900_000)

    assert line.endswith(f"x... ({900_000} characters)\n")
