import io
import json
import logging
import sys
from collections.abc import Iterator

import pytest

from pipeline.log import FOREIGN, REPEAT_WINDOW_S, REPEATS, RepeatFilter, configure_logging
from pipeline.settings import LogSettings


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Leave the logging of the test run as it was."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    levels = {name: logging.getLogger(name).level for name in FOREIGN}
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name, foreign_level in levels.items():
        logging.getLogger(name).setLevel(foreign_level)


def flood(clock_s: list[float], name: str, lines: int, repeats: RepeatFilter) -> list[object]:
    """Pass lines of one place; return, for those let through, what was held back before them."""
    passed = []
    for _ in range(lines):
        record = logging.LogRecord(name, logging.WARNING, "conn.py", 17, "lost", (), None)
        if repeats.filter(record):
            passed.append(getattr(record, "held_back", 0))
    return passed


def test_a_flood_from_a_foreign_place_is_held_back_and_counted() -> None:
    """A few lines a window pass; the first of the next window says how many did not."""
    clock_s = [0.0]
    repeats = RepeatFilter(lambda: clock_s[0])

    first = flood(clock_s, "aiokafka.conn", 1000, repeats)
    clock_s[0] += REPEAT_WINDOW_S
    second = flood(clock_s, "aiokafka.conn", 2, repeats)
    clock_s[0] += REPEAT_WINDOW_S
    third = flood(clock_s, "aiokafka.conn", 1, repeats)

    assert first == [0] * REPEATS
    assert second == [1000 - REPEATS, 0]
    assert third == [0]


def test_a_client_that_is_closed_in_a_request_is_no_error() -> None:
    """Every stop of a worker would end with such lines."""
    log = io.StringIO()
    configure_logging(LogSettings(), stream=log)
    for what in ("Cancelled", "NodeNotReadyError"):
        logging.getLogger("kafka.cluster").error("Metadata refresh: failed %s", what)

    assert "NodeNotReadyError" in log.getvalue()
    assert "Cancelled" not in log.getvalue()


def test_our_own_lines_are_never_held_back() -> None:
    """What we log we log on purpose."""
    assert flood([0.0], "pipeline.worker.app", 50, RepeatFilter(lambda: 0.0)) == [0] * 50


def test_lines_of_several_processes_are_told_apart() -> None:
    """By number, in both formats, where they are written to one place."""
    text, lines = io.StringIO(), io.StringIO()

    configure_logging(LogSettings(), text, process=3)
    logging.getLogger("pipeline.x").info("hello")
    configure_logging(LogSettings(format="json"), lines, process=3)
    logging.getLogger("pipeline.x").info("hello")

    assert text.getvalue().endswith(" INFO [3] pipeline.x: hello\n")
    assert json.loads(lines.getvalue())["process"] == 3


def test_lines_for_people_have_time_level_and_place() -> None:
    """One line each, in UTC, with a traceback below where there is one."""
    stream = io.StringIO()
    configure_logging(LogSettings(), stream)

    logging.getLogger("pipeline.worker.app").info("partitions %s", [1, 2])
    logging.getLogger("pipeline.worker.app").debug("too much")
    try:
        sys.exit("trouble")
    except SystemExit:
        logging.getLogger("pipeline.worker.app").exception("failed")

    first, second, *traceback = stream.getvalue().splitlines()
    assert first[10] == "T"
    assert first[23:] == "Z INFO pipeline.worker.app: partitions [1, 2]"
    assert second.endswith(" ERROR pipeline.worker.app: failed")
    assert traceback[-1] == "SystemExit: trouble"


def test_json_lines_hold_the_same() -> None:
    """One object a line, whatever the message holds; tracebacks are a field."""
    stream = io.StringIO()
    configure_logging(LogSettings(format="json"), stream)

    logging.getLogger("pipeline.worker.app").warning('a "b"\n%d', 3)
    try:
        sys.exit("trouble")
    except SystemExit:
        logging.getLogger("pipeline.worker.app").exception("failed")
    for _ in range(REPEATS + 1):
        logging.getLogger("faust.app").warning("again")

    first, second, *rest = [json.loads(line) for line in stream.getvalue().splitlines()]
    assert {name: first[name] for name in ("level", "logger", "message")} == {
        "level": "WARNING",
        "logger": "pipeline.worker.app",
        "message": 'a "b"\n3',
    }
    assert first["time"].endswith("Z")
    assert "SystemExit: trouble" in second["exception"]
    assert [line["message"] for line in rest] == ["again"] * REPEATS


@pytest.mark.parametrize(
    ("level", "heard"),
    [
        ("INFO", ["ours INFO", "ours WARNING", "theirs WARNING"]),
        ("DEBUG", ["ours DEBUG", "ours INFO", "ours WARNING", "theirs INFO", "theirs WARNING"]),
        ("ERROR", []),
    ],
)
def test_clients_of_kafka_are_quieter_than_we(level: str, heard: list[str]) -> None:
    """Their INFO is heard at our DEBUG only."""
    stream = io.StringIO()
    configure_logging(LogSettings(level=level), stream)  # type: ignore[arg-type]

    for name, whose in (("pipeline.worker.app", "ours"), ("aiokafka.consumer", "theirs")):
        for line_level in ("DEBUG", "INFO", "WARNING"):
            line = f"{whose} {line_level}"
            logging.getLogger(name).log(logging.getLevelName(line_level), line)

    assert [line.split(": ")[1] for line in stream.getvalue().splitlines()] == heard


def test_configuring_twice_writes_once() -> None:
    """The second configuration replaces the first."""
    first, second = io.StringIO(), io.StringIO()
    configure_logging(LogSettings(), first)
    configure_logging(LogSettings(), second)

    logging.getLogger("pipeline.worker.app").warning("hello")

    assert first.getvalue() == ""
    assert second.getvalue().count("hello") == 1
