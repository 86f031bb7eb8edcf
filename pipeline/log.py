"""The log: one handler on stderr, lines for people or JSON, floods of foreign lines held back.

Called once, by `__main__`. INFO is what an operator acts on or dates by; nothing per event stands
above DEBUG. No line holds user content, but an id where the operator can do nothing without it.
"""

import json
import logging
import sys
import time
from collections.abc import Callable
from datetime import UTC, datetime
from typing import TextIO

from pipeline.printable import escaped
from pipeline.settings import LogSettings

REPEATS = 5  # lines from one place in the code ...
REPEAT_WINDOW_S = 10.0  # ... in so much time; a broker away for 10 s makes thousands
MAX_MESSAGE = 2000  # characters; one that quotes a record could have a million
FOREIGN = ("aiokafka", "asyncio", "faust", "kafka", "mode", "torch")


class RepeatFilter(logging.Filter):
    """Lets a few lines a window through from each place in the code of Kafka's clients and Faust.

    The number of lines that were held back comes with the next one from that place, as its
    attribute `held_back`.
    """

    def __init__(self, clock_s: Callable[[], float] = time.monotonic) -> None:
        super().__init__()
        self._clock_s = clock_s
        self._windows: dict[tuple[str, int], tuple[float, int]] = {}

    def filter(self, record: logging.LogRecord) -> bool:
        """Tell whether the line may be written."""
        if record.name.partition(".")[0] not in FOREIGN:
            return True
        place, now_s = (record.pathname, record.lineno), self._clock_s()
        start_s, lines = self._windows.get(place, (now_s, 0))
        if now_s - start_s >= REPEAT_WINDOW_S:
            if lines > REPEATS:
                record.held_back = lines - REPEATS
            start_s, lines = now_s, 0
        self._windows[place] = (start_s, lines + 1)
        return lines < REPEATS


def is_news(record: logging.LogRecord) -> bool:
    """Tell whether a line says anything: kafka-python logs an error for a close in a request."""
    return record.name != "kafka.cluster" or not record.getMessage().endswith("failed Cancelled")


class TextFormatter(logging.Formatter):
    """`2026-01-31T12:00:00.000Z INFO pipeline.log: message`, with a traceback below if any.

    A message may quote a record that anybody wrote: it ends no line and moves no cursor.

    Args:
        process: Number of this process among several that write to one place; it then stands in
            brackets behind the level.
    """

    def __init__(self, process: int | None = None) -> None:
        number = "" if process is None else f" [{process}]"
        super().__init__(f"%(asctime)s %(levelname)s{number} %(name)s: %(message)s")

    def formatTime(self, record: logging.LogRecord, datefmt: str | None = None) -> str:
        """Return the time in UTC, ISO 8601."""
        return _moment(record)

    def formatMessage(self, record: logging.LogRecord) -> str:
        """Return the line, with the number of its like that were held back."""
        record.message = escaped(_shortened(record.message))
        held_back = getattr(record, "held_back", 0)
        return super().formatMessage(record) + (f" (+{held_back} like it)" if held_back else "")


class JsonFormatter(logging.Formatter):
    """One JSON object a line: time, level, logger, message; held_back and exception if any.

    Args:
        process: As in `TextFormatter`; it then stands under `process`.
    """

    def __init__(self, process: int | None = None) -> None:
        super().__init__()
        self._number = {} if process is None else {"process": process}

    def format(self, record: logging.LogRecord) -> str:
        """Return the record as JSON."""
        line: dict[str, object] = {
            "time": _moment(record),
            "level": record.levelname,
            "logger": record.name,
            "message": _shortened(record.getMessage()),
            **self._number,
        }
        if held_back := getattr(record, "held_back", 0):
            line["held_back"] = held_back
        if record.exc_info:
            line["exception"] = self.formatException(record.exc_info)
        return json.dumps(line)


def _shortened(message: str) -> str:
    if len(message) <= MAX_MESSAGE:
        return message
    return f"{message[:MAX_MESSAGE]}... ({len(message)} characters)"


def _moment(record: logging.LogRecord) -> str:
    moment = datetime.fromtimestamp(record.created, UTC)
    return moment.isoformat(timespec="milliseconds").replace("+00:00", "Z")


def is_json() -> bool:
    """Tell whether the log is one of JSON objects."""
    handlers = logging.getLogger().handlers
    return any(isinstance(handler.formatter, JsonFormatter) for handler in handlers)


def configure_logging(
    settings: LogSettings, stream: TextIO | None = None, *, process: int | None = None
) -> None:
    """Send the log of this process to a stream (None: stderr); a second call replaces the first.

    Kafka's clients and Faust speak up from WARNING on only, at level DEBUG from INFO on.

    Args:
        settings: Level and format.
        stream: Where to.
        process: Number of this process, where several write to one place.
    """
    handler = logging.StreamHandler(stream or sys.stderr)
    form = JsonFormatter if settings.format == "json" else TextFormatter
    handler.setFormatter(form(process))
    handler.addFilter(is_news)
    handler.addFilter(RepeatFilter())
    logging.basicConfig(level=settings.level, handlers=[handler], force=True)
    logging.captureWarnings(True)
    for name in FOREIGN:
        least = logging.INFO if settings.level == "DEBUG" else logging.WARNING
        logging.getLogger(name).setLevel(max(least, logging.getLevelName(settings.level)))
    # It warns whenever its thread had to wait for another: of no use to an operator.
    logging.getLogger("kafka.net.selector").setLevel(logging.ERROR)
