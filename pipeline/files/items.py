"""Files about items: their titles, and their ids in the order of a model's rows."""

from pathlib import Path

from pipeline.files.text import TABLE_SUFFIXES, full_rows, opened, refuse, refuse_suffix, table

EXPECTED_ITEM = "an item that has no line before"


def read_titles(path: Path) -> dict[str, str]:
    """Read the titles of items: a `.csv` or `.tsv` file with the columns `item` and `title`.

    Raises:
        DataFileInvalid: It cannot be read, lacks a column, or an item has no id or stands twice.
    """
    if not path.name.endswith(TABLE_SUFFIXES):
        refuse_suffix(path, TABLE_SUFFIXES)
    titles: dict[str, str] = {}
    with table(path, ("item", "title")) as (header, reader):
        item, title = header.index("item"), header.index("title")
        for row in full_rows(path, header, reader):
            if not row[item] or row[item] in titles:
                refuse(path, reader.line_num, EXPECTED_ITEM, repr(row[item]))
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
            refuse(path, number, EXPECTED_ITEM, repr(item_id))
        lines[item_id] = number

    if path.name.endswith(TABLE_SUFFIXES):
        with table(path, ()) as (header, reader):
            for row in full_rows(path, header, reader):
                if len(row) > 1 and row[0] != str(len(lines) + 1):
                    expected = f"row number {len(lines) + 1} as {header[0]}"
                    refuse(path, reader.line_num, expected, repr(row[0]))
                add(row[-1], reader.line_num)
    else:
        with opened(path) as text:
            for number, line in enumerate(text, start=1):
                add(line.rstrip("\r\n"), number)
    if not lines:
        refuse(path, None, "at least one item", "none")
    return list(lines)
