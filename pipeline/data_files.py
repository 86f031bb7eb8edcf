"""Files of interactions and of item titles.

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

import csv
import gzip
import importlib
import math
import zlib
from collections import defaultdict
from collections.abc import Callable, Iterable, Iterator, Sequence
from contextlib import contextmanager
from dataclasses import dataclass, replace
from itertools import islice
from pathlib import Path
from typing import Any, NamedTuple, NoReturn, TextIO

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataFileInvalid

MIN_MS = 1e11  # as seconds the year 5138, as milliseconds March 1973: no doubt which
MAX_TIMESTAMP_MS = 4_102_444_800_000  # 2100-01-01T00:00:00Z
SEQUENCE_START_MS = 946_684_800_000  # 2000-01-01T00:00:00Z
SEQUENCE_SPAN_MS = 366 * 86_400_000
BLOCK_ROWS = 4096  # handled at once: enough for speed, few enough for the processor's cache

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")
SEQUENCE_SUFFIXES = (".seq.txt", ".seq.txt.gz")
COLUMNS = ("user", "item", "timestamp")
EXPECTED_TIME = "a timestamp in seconds or milliseconds, 1970 to 2099"


class Interaction(NamedTuple):
    """One row of a data file."""

    user: str
    item: str
    timestamp_ms: int
    event_type: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """The rows of a data file as columns, by time; n rows.

    Attributes:
        user_ids: Every user once, in the file's order.
        item_ids: Every item once, in the file's order.
        event_types: Every kind of event once, "" for none; empty where the file tells no kinds.
        users: int32 (n,), indices into `user_ids`.
        items: int32 (n,), indices into `item_ids`.
        types: int32 (n,), indices into `event_types`; None where the file tells no kinds.
        timestamps_ms: int64 (n,), never falling.
    """

    user_ids: list[str]
    item_ids: list[str]
    event_types: list[str]
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    types: NDArray[np.int32] | None
    timestamps_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Interaction]:
        """Yield the rows from `start` up to `stop` (None: the end), oldest first."""
        stop = len(self) if stop is None else min(stop, len(self))
        for low in range(start, stop, BLOCK_ROWS):
            block = slice(low, min(low + BLOCK_ROWS, stop))
            types: list[str | None] = [None] * (block.stop - low)
            if self.types is not None:
                types = [self.event_types[index] or None for index in self.types[block].tolist()]
            yield from map(
                Interaction,
                [self.user_ids[index] for index in self.users[block].tolist()],
                [self.item_ids[index] for index in self.items[block].tolist()],
                self.timestamps_ms[block].tolist(),
                types,
            )


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
        _refuse_suffix(path, (*TABLE_SUFFIXES, *SEQUENCE_SUFFIXES, ".parquet"))
    return _read_parquet(path)


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
        _refuse(path, None, expected, "none")


def read_titles(path: Path) -> dict[str, str]:
    """Read the titles of items: a `.csv` or `.tsv` file with the columns `item` and `title`.

    Raises:
        DataFileInvalid: As for `read_interactions`; also where an item stands twice.
    """
    if not path.name.endswith(TABLE_SUFFIXES):
        _refuse_suffix(path, TABLE_SUFFIXES)
    titles: dict[str, str] = {}
    with _table(path, ("item", "title")) as (header, reader):
        item, title = header.index("item"), header.index("title")
        for row in filter(None, reader):
            if len(row) != len(header):
                expected = f"{len(header)} fields as in line 1"
                _refuse(path, reader.line_num, expected, f"{len(row)}")
            if not row[item] or row[item] in titles:
                expected = "an item that has no line before"
                _refuse(path, reader.line_num, expected, repr(row[item]))
            titles[row[item]] = row[title]
    return titles


def read_item_ids(path: Path) -> list[str]:
    """Read the ids of a model's items, in the order of its rows, from 1.

    The file is a table (`.csv`, `.tsv`) whose last column is the id and whose first, where there
    are several, numbers the rows from 1; or any other text file, one id a line. Both may be `.gz`.

    Raises:
        DataFileInvalid: It cannot be read, is empty, or has a row out of place, an empty id or one
            that was there before.
    """
    lines: dict[str, int] = {}

    def add(item_id: str, number: int) -> None:
        if not item_id or item_id in lines:
            _refuse(path, number, "an item that has no line before", repr(item_id))
        lines[item_id] = number

    if path.name.endswith(TABLE_SUFFIXES):
        with _table(path, ()) as (header, reader):
            for row in filter(None, reader):
                if len(row) != len(header):
                    expected = f"{len(header)} fields as in line 1"
                    _refuse(path, reader.line_num, expected, f"{len(row)}")
                if len(row) > 1 and row[0] != str(len(lines) + 1):
                    expected = f"row number {len(lines) + 1} as {header[0]}"
                    _refuse(path, reader.line_num, expected, repr(row[0]))
                add(row[-1], reader.line_num)
    else:
        with _opened(path) as text:
            for number, line in enumerate(text, start=1):
                add(line.rstrip("\r\n"), number)
    if not lines:
        _refuse(path, None, "at least one item", "none")
    return list(lines)


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
    with _table(path, COLUMNS) as (header, reader):
        user, item, time = (header.index(name) for name in COLUMNS)
        kind = _event_type_name(header)
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
    timestamps_ms = _milliseconds(
        path, np.concatenate(times), lambda _row, limit: _refuse_first_broken(path, limit)
    )
    return _by_time(
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
    with _table(path, COLUMNS) as (header, reader):
        for row in filter(None, reader):
            if len(row) != len(header):
                expected = f"{len(header)} fields as in line 1"
                _refuse(path, reader.line_num, expected, f"{len(row)}")
            for name in ("user", "item"):
                if not row[header.index(name)]:
                    _refuse(path, reader.line_num, f"a text for {name}", "nothing")
            number = row[header.index("timestamp")]
            if not _is_time(number, limit):
                _refuse(path, reader.line_num, EXPECTED_TIME, repr(number))
    _refuse(path, None, "the same content as a moment ago", "another")


def _is_time(text: str, limit: float) -> bool:
    try:
        return 0 <= float(text) < limit
    except ValueError:
        return False


def _read_sequences(path: Path) -> Interactions:
    first_lines: dict[str, int] = {}
    lengths: list[int] = []
    items = _Codes()
    with _opened(path) as text:
        for number, line in enumerate(text, start=1):
            user, *sequence = line.split() or [""]
            if not user:
                continue
            if not sequence:
                _refuse(path, number, "a user and at least one item", f"{user!r} alone")
            if user in first_lines:
                expected = f"one line per user (user {user!r} has line {first_lines[user]})"
                _refuse(path, number, expected, "a second one")
            first_lines[user] = number
            lengths.append(len(sequence))
            items.extend(sequence)
    n = np.repeat(lengths, lengths)
    if not len(n):
        _refuse(path, None, "at least one line", "none")
    before = np.repeat(np.cumsum(lengths) - lengths, lengths)
    position = np.arange(1, len(n) + 1) - before
    return _by_time(
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


def _read_parquet(path: Path) -> Interactions:
    try:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
    except ImportError as error:
        msg = f"{path}: parquet needs pyarrow: pip install 'lrurec-stream[parquet]'"
        raise DataFileInvalid(msg) from error
    try:
        return _parquet_rows(path, arrow, parquet)
    except (OSError, arrow.ArrowException) as error:
        msg = f"{path}: cannot be read as parquet: {error}"
        raise DataFileInvalid(msg) from error


def _parquet_rows(path: Path, arrow: Any, parquet: Any) -> Interactions:
    header = parquet.read_schema(path).names
    _check_columns(path, header, COLUMNS)
    kind = _event_type_name(header)
    table = parquet.read_table(path, columns=[*COLUMNS, *([kind] if kind else [])])

    def texts(name: str) -> tuple[list[str], NDArray[np.int32]]:
        column = table[name]
        if arrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        legal = ("is_integer", "is_string", "is_large_string", "is_string_view")
        if not any(getattr(arrow.types, test)(column.type) for test in legal):
            _refuse(path, None, f"texts or integers as {name}", f"{column.type}")
        return encode_texts(path, name, column, arrow)

    def ids(name: str) -> tuple[list[str], NDArray[np.int32]]:
        names, codes = texts(name)
        if "" in names:
            row = int(np.argmax(codes == names.index("")))
            _refuse(path, row + 1, f"a text for {name}", "nothing", unit="row")
        return names, codes

    def refuse_time(row: int, _limit: float) -> NoReturn:
        found = table["timestamp"][row]
        try:
            got = f"{found}"
        except (OverflowError, ValueError):  # Python has no date for it
            got = f"{found.value} as {found.type}"
        _refuse(path, row + 1, EXPECTED_TIME, got, unit="row")

    times, scale = table["timestamp"], None
    if arrow.types.is_timestamp(times.type) or arrow.types.is_date(times.type):
        times, scale = times.cast(arrow.timestamp("ms"), safe=False).cast(arrow.int64()), 1
    elif not (arrow.types.is_integer(times.type) or arrow.types.is_floating(times.type)):
        _refuse(path, None, "numbers or dates as timestamp", f"{times.type}")
    numbers = times.cast(arrow.float64(), safe=False).to_numpy()
    user_ids, users = ids("user")
    item_ids, items = ids("item")
    event_types, types = texts(kind) if kind else ([], None)
    return _by_time(
        Interactions(
            user_ids=user_ids,
            item_ids=item_ids,
            event_types=event_types,
            users=users,
            items=items,
            types=types,
            timestamps_ms=_milliseconds(path, numbers, refuse_time, scale),
        )
    )


def encode_texts(
    path: Path, name: str, column: Any, arrow: Any
) -> tuple[list[str], NDArray[np.int32]]:
    """Return the texts of a column, each once, and each row's number among them; "" for a null.

    The chunks are joined as numbers only: joined as texts they can have more than 2 GiB.
    """
    column = column.cast(arrow.large_string()).fill_null("").dictionary_encode().combine_chunks()
    codes = column.indices.to_numpy().astype(np.int32)
    try:
        return column.dictionary.to_pylist(), codes
    except UnicodeDecodeError:
        values = column.dictionary.cast(arrow.large_binary()).to_pylist()
        bad = next(number for number, value in enumerate(values) if not _is_utf8(value))
        row = int(np.argmax(codes == bad))
        _refuse(path, row + 1, f"UTF-8 as {name}", "other bytes", unit="row")


def _milliseconds(
    path: Path,
    times: NDArray[np.float64],
    refuse: Callable[[int, float], NoReturn],
    scale: int | None = None,
) -> NDArray[np.int64]:
    """Return times that are all in seconds or all in milliseconds as milliseconds.

    Args:
        path: The file, for the message that it has no rows.
        times: (n,)
        refuse: Told the first row out of range, and the limit in the file's unit; raises.
        scale: Milliseconds of the file's unit; None: to be found out from the largest time.
    """
    if not len(times):
        _refuse(path, None, "at least one row", "none")
    if scale is None:
        scale = 1000 if times.max() < MIN_MS else 1
    limit = MAX_TIMESTAMP_MS / scale
    legal = (times >= 0) & (times < limit)
    if not legal.all():
        refuse(int(np.argmin(legal)), limit)
    return np.rint(times * scale).astype(np.int64)


def _by_time(rows: Interactions) -> Interactions:
    order = np.argsort(rows.timestamps_ms, kind="stable")
    return replace(
        rows,
        users=rows.users[order],
        items=rows.items[order],
        types=None if rows.types is None else rows.types[order],
        timestamps_ms=rows.timestamps_ms[order],
    )


@contextmanager
def _opened(path: Path) -> Iterator[TextIO]:
    """Open a text file, gzipped or not; trouble in reading it becomes DataFileInvalid."""
    try:
        try:
            with _open(path)(path, "rt", encoding="utf-8-sig", newline="") as text:
                yield text
        except UnicodeDecodeError as error:
            with _open(path)(path, "rb") as lines:  # which may be damaged further on
                number = next(number for number, line in enumerate(lines, 1) if not _is_utf8(line))
            msg = f"{path}, line {number}: expected UTF-8, got other bytes"
            raise DataFileInvalid(msg) from error
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataFileInvalid(msg) from error


def _open(path: Path) -> Callable[..., Any]:
    return gzip.open if path.suffix == ".gz" else open


def _is_utf8(line: bytes) -> bool:
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


@contextmanager
def _table(path: Path, needed: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """Open a table; yield its header and a `csv.reader` of what follows."""
    with _opened(path) as text:
        delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = [name.strip().lower() for name in next(reader, [])]
            _check_columns(path, header, needed)
            yield header, reader
        except csv.Error as error:
            _refuse(path, reader.line_num, "well-formed fields", f"{error}")


def _check_columns(path: Path, header: Sequence[str], needed: Sequence[str]) -> None:
    if any(name not in header for name in needed):
        got = ",".join(header) or "none"
        _refuse(path, None, f"the columns {','.join(needed)}", got)


def _event_type_name(header: Sequence[str]) -> str | None:
    return next((name for name in ("event_type", "event") if name in header), None)


def _refuse(
    path: Path, number: int | None, expected: str, got: str, *, unit: str = "line"
) -> NoReturn:
    where = path if number is None else f"{path}, {unit} {number}"
    msg = f"{where}: expected {expected}, got {got}"
    raise DataFileInvalid(msg)


def _refuse_suffix(path: Path, known: Sequence[str]) -> NoReturn:
    _refuse(path, None, f"a name that ends in one of {', '.join(known)}", "another")
