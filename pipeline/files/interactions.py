"""Files of interactions.

Interactions come as one of
- `.csv`, `.tsv` or `.parquet`: columns `user`, `item`, `timestamp` and, where there are kinds of
  events, `event_type` or `event`; more columns are ignored. Timestamps are Unix times: seconds if
  the largest of the file is under 1e11 (the year 5138), else milliseconds. A parquet column of
  dates is taken as such, whatever the dates.
- `.seq.txt`: a line per user, `user item item ...`, separated by blanks, oldest first. It has no
  times, so it gets a clock: each user's items are spread evenly over the year 2000, item j of n
  (from 1) at the share j / (n + 1) of it. A cut in time is then a cut in every history.

All but parquet may be gzipped (`.gz`). Text is UTF-8. Rows come out by time; equal times keep the
file's order.
"""

import math
from collections import defaultdict
from collections.abc import Iterable, Sequence
from itertools import islice
from pathlib import Path
from typing import NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.files.parquet import read_parquet
from pipeline.files.rows import (
    BLOCK_ROWS,
    COLUMNS,
    EXPECTED_TIME,
    Interactions,
    event_type_name,
    in_order_of_time,
    milliseconds,
)
from pipeline.files.text import TABLE_SUFFIXES, full_rows, opened, refuse, refuse_suffix, table

SEQUENCE_START_MS = 946_684_800_000  # 2000-01-01T00:00:00Z
SEQUENCE_SPAN_MS = 366 * 86_400_000

SEQUENCE_SUFFIXES = (".seq.txt", ".seq.txt.gz")


def read_interactions(path: Path) -> Interactions:
    """Read a file of interactions.

    Raises:
        DataFileInvalid: It cannot be read, has no known form or no rows, or a line is broken; the
            message has file, line, what was expected and what was there.
    """
    if path.name.endswith(TABLE_SUFFIXES):
        return _read_table(path)
    if path.name.endswith(SEQUENCE_SUFFIXES):
        return _read_sequences(path)
    if not path.name.endswith(".parquet"):
        refuse_suffix(path, (*TABLE_SUFFIXES, *SEQUENCE_SUFFIXES, ".parquet"))
    return read_parquet(path)


def require_event_types(path: Path, rows: Interactions, accepted: Sequence[str]) -> None:
    """Refuse a file that tells no kinds of events where only some count: none of its own would.

    Args:
        path: The file, for the message.
        rows: What was read of it.
        accepted: The kinds that count; empty: all.

    Raises:
        DataFileInvalid: Kinds are asked for, and there are none.
    """
    if accepted and rows.types is None:
        expected = f"a column event_type, as fields.accepted_event_types is {','.join(accepted)}"
        refuse(path, None, expected, "none")


class _Codes:
    """Numbers texts in order of first appearance."""

    def __init__(self) -> None:
        self._codes: defaultdict[str, int] = defaultdict()
        self._codes.default_factory = self._codes.__len__
        self._blocks: list[NDArray[np.int32]] = [np.empty(0, dtype=np.int32)]

    def extend(self, texts: Iterable[str]) -> None:
        codes = self._codes
        self._blocks.append(np.array([codes[text] for text in texts], dtype=np.int32))

    @property
    def texts(self) -> list[str]:
        return list(self._codes)

    @property
    def column(self) -> NDArray[np.int32]:
        return np.concatenate(self._blocks)


def _read_table(path: Path) -> Interactions:
    users, items, types = _Codes(), _Codes(), _Codes()
    times = [np.empty(0)]
    with table(path, COLUMNS) as (header, reader):
        user, item, time = (header.index(name) for name in COLUMNS)
        kind = event_type_name(header)
        rows = filter(None, reader)
        while block := list(islice(rows, BLOCK_ROWS)):
            try:
                columns = list(zip(*block, strict=True))
                if len(columns) != len(header) or "" in columns[user] or "" in columns[item]:
                    _refuse_first_broken(path, math.inf)
                times.append(np.array([float(number) for number in columns[time]]))
            except ValueError:
                _refuse_first_broken(path, math.inf)
            users.extend(columns[user])
            items.extend(columns[item])
            if kind is not None:
                types.extend(columns[header.index(kind)])
    timestamps_ms = milliseconds(
        path, np.concatenate(times), lambda _row, limit: _refuse_first_broken(path, limit)
    )
    return in_order_of_time(
        Interactions(
            user_ids=users.texts,
            item_ids=items.texts,
            event_types=types.texts,
            users=users.column,
            items=items.column,
            types=types.column if kind is not None else None,
            timestamps_ms=timestamps_ms,
        )
    )


def _refuse_first_broken(path: Path, limit: float) -> NoReturn:
    """Read a table row by row to name the first line that is not as it should be.

    Args:
        path: The file.
        limit: A timestamp in the file's unit that lies beyond the year 2099.
    """
    with table(path, COLUMNS) as (header, reader):
        for row in full_rows(path, header, reader):
            for name in ("user", "item"):
                if not row[header.index(name)]:
                    refuse(path, reader.line_num, f"a text for {name}", "nothing")
            number = row[header.index("timestamp")]
            if not _is_time(number, limit):
                refuse(path, reader.line_num, EXPECTED_TIME, repr(number))
    refuse(path, None, "the same content as a moment ago", "another")


def _is_time(text: str, limit: float) -> bool:
    try:
        return 0 <= float(text) < limit
    except ValueError:
        return False


def _read_sequences(path: Path) -> Interactions:
    first_lines: dict[str, int] = {}
    lengths: list[int] = []
    items = _Codes()
    with opened(path) as text:
        for number, line in enumerate(text, start=1):
            user, *sequence = line.split() or [""]
            if not user:
                continue
            if not sequence:
                refuse(path, number, "a user and at least one item", f"{user!r} alone")
            if user in first_lines:
                expected = f"one line per user (user {user!r} has line {first_lines[user]})"
                refuse(path, number, expected, "a second one")
            first_lines[user] = number
            lengths.append(len(sequence))
            items.extend(sequence)
    n = np.repeat(lengths, lengths)
    if not len(n):
        refuse(path, None, "at least one line", "none")
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    position = np.arange(1, len(n) + 1) - before
    return in_order_of_time(
        Interactions(
            user_ids=list(first_lines),
            item_ids=items.texts,
            event_types=[],
            users=np.repeat(np.arange(len(lengths), dtype=np.int32), lengths),
            items=items.column,
            types=None,
            timestamps_ms=SEQUENCE_START_MS + SEQUENCE_SPAN_MS * position // (n + 1),
        )
    )
