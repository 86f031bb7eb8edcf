"""Reading text files and tables; whatever is wrong with one is told with its file and line.

Any may be gzipped (`.gz`). Text is UTF-8.
"""

import csv
import gzip
import zlib
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any, NoReturn, TextIO

from pipeline.errors import DataFileInvalid

TABLE_SUFFIXES = (".csv", ".csv.gz", ".tsv", ".tsv.gz")


@contextmanager
def opened(path: Path) -> Iterator[TextIO]:
    """Open a text file, gzipped or not; trouble in reading it becomes DataFileInvalid."""
    try:
        try:
            with _open(path)(path, "rt", encoding="utf-8-sig", newline="") as text:
                yield text
        except UnicodeDecodeError:
            with _open(path)(path, "rb") as lines:  # which may be damaged further on
                number = next(number for number, line in enumerate(lines, 1) if not is_utf8(line))
            refuse(path, number, "UTF-8", "other bytes")
    except (OSError, EOFError, zlib.error) as error:
        msg = f"{path}: cannot be read: {getattr(error, 'strerror', None) or error}"
        raise DataFileInvalid(msg) from error


@contextmanager
def table(path: Path, needed: Sequence[str]) -> Iterator[tuple[list[str], Any]]:
    """Open a table; yield its header and a `csv.reader` of what follows."""
    with opened(path) as text:
        delimiter = "\t" if path.name.removesuffix(".gz").endswith(".tsv") else ","
        reader = csv.reader(text, delimiter=delimiter, strict=True)
        try:
            header = [name.strip().lower() for name in next(reader, [])]
            check_columns(path, header, needed)
            yield header, reader
        except csv.Error as error:
            refuse(path, reader.line_num, "well-formed fields", f"{error}")


def full_rows(path: Path, header: Sequence[str], reader: Any) -> Iterator[list[str]]:
    """Yield the rows of a table, each as long as its header; blank lines are none."""
    for row in filter(None, reader):
        if len(row) != len(header):
            expected = f"{len(header)} fields as in line 1"
            refuse(path, reader.line_num, expected, f"{len(row)}")
        yield row


def check_columns(path: Path, header: Sequence[str], needed: Sequence[str]) -> None:
    """Refuse a file that lacks a column."""
    if any(name not in header for name in needed):
        got = ",".join(header) or "none"
        refuse(path, None, f"the columns {','.join(needed)}", got)


def refuse(
    path: Path, number: int | None, expected: str, got: str, *, unit: str = "line"
) -> NoReturn:
    """Refuse a file, or one line of it.

    Raises:
        DataFileInvalid: Always.
    """
    where = path if number is None else f"{path}, {unit} {number}"
    msg = f"{where}: expected {expected}, got {got}"
    raise DataFileInvalid(msg)


def refuse_suffix(path: Path, known: Sequence[str]) -> NoReturn:
    """Refuse a file for its name."""
    refuse(path, None, f"a name that ends in one of {', '.join(known)}", "another")


def is_utf8(line: bytes) -> bool:
    """Tell whether these bytes are a text."""
    try:
        line.decode()
    except UnicodeDecodeError:
        return False
    return True


def _open(path: Path) -> Callable[..., Any]:
    return gzip.open if path.suffix == ".gz" else open
