"""Parquet files of interactions; pyarrow reads them, where it is installed."""

import importlib
from pathlib import Path
from typing import Any, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.errors import DataFileInvalid
from pipeline.files.rows import (
    COLUMNS,
    EXPECTED_TIME,
    Interactions,
    event_type_name,
    in_order_of_time,
    milliseconds,
)
from pipeline.files.text import check_columns, is_utf8, refuse


def read_parquet(path: Path) -> Interactions:
    """Read a file.

    Raises:
        DataFileInvalid: It cannot be read, has other columns, or a row is broken; or there is no
            pyarrow.
    """
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
    check_columns(path, header, COLUMNS)
    kind = event_type_name(header)
    table = parquet.read_table(path, columns=[*COLUMNS, *([kind] if kind else [])])

    def texts(name: str) -> tuple[list[str], NDArray[np.int32]]:
        column = table[name]
        if arrow.types.is_dictionary(column.type):
            column = column.cast(column.type.value_type)
        legal = ("is_integer", "is_string", "is_large_string", "is_string_view")
        if not any(getattr(arrow.types, test)(column.type) for test in legal):
            refuse(path, None, f"texts or integers as {name}", f"{column.type}")
        return encode_texts(path, name, column, arrow)

    def ids(name: str) -> tuple[list[str], NDArray[np.int32]]:
        names, codes = texts(name)
        if "" in names:
            row = int(np.argmax(codes == names.index("")))
            refuse(path, row + 1, f"a text for {name}", "nothing", unit="row")
        return names, codes

    def refuse_time(row: int, _limit: float) -> NoReturn:
        found = table["timestamp"][row]
        try:
            got = f"{found}"
        except (OverflowError, ValueError):  # Python has no date for it
            got = f"{found.value} as {found.type}"
        refuse(path, row + 1, EXPECTED_TIME, got, unit="row")

    times, scale = table["timestamp"], None
    if arrow.types.is_timestamp(times.type) or arrow.types.is_date(times.type):
        times, scale = times.cast(arrow.timestamp("ms"), safe=False).cast(arrow.int64()), 1
    elif not (arrow.types.is_integer(times.type) or arrow.types.is_floating(times.type)):
        refuse(path, None, "numbers or dates as timestamp", f"{times.type}")
    numbers = times.cast(arrow.float64(), safe=False).to_numpy()
    user_ids, users = ids("user")
    item_ids, items = ids("item")
    event_types, types = texts(kind) if kind else ([], None)
    return in_order_of_time(
        Interactions(
            user_ids=user_ids,
            item_ids=item_ids,
            event_types=event_types,
            users=users,
            items=items,
            types=types,
            timestamps_ms=milliseconds(path, numbers, refuse_time, scale),
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
        bad = next(number for number, value in enumerate(values) if not is_utf8(value))
        row = int(np.argmax(codes == bad))
        refuse(path, row + 1, f"UTF-8 as {name}", "other bytes", unit="row")
