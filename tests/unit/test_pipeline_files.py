import gzip
import hashlib
import importlib.util
from importlib import resources
from pathlib import Path

import numpy as np
import pytest

from pipeline.errors import DataFileInvalid
from pipeline.events import MAX_TIMESTAMP_MS
from pipeline.files import interactions
from pipeline.files.interactions import SEQUENCE_START_MS, read_interactions
from pipeline.files.items import read_titles
from pipeline.files.parquet import encode_texts
from pipeline.files.rows import BLOCK_ROWS, Interaction

T = 1_600_000_000
T_MS = T * 1000


def write(path: Path, text: str, encoding: str = "utf-8") -> Path:
    data = text.encode(encoding)
    path.write_bytes(gzip.compress(data) if path.suffix == ".gz" else data)
    return path


def rows(path: Path) -> list[Interaction]:
    return list(read_interactions(path).rows())


@pytest.mark.parametrize("name", ["a.csv", "a.csv.gz"])
def test_a_table_is_read_by_its_header(tmp_path: Path, name: str) -> None:
    """Columns may stand in any order beside others; seconds become milliseconds."""
    path = write(tmp_path / name, f"price,timestamp,item,user\n1,{T},i,u\n2,{T + 1},j,u\n")

    assert rows(path) == [
        Interaction("u", "i", T_MS, None),
        Interaction("u", "j", T_MS + 1000, None),
    ]


def test_columns_number_users_and_items_in_order_of_appearance(tmp_path: Path) -> None:
    """The columns index the lists of ids, in time order."""
    path = write(tmp_path / "a.csv", f"user,item,timestamp\nv,i,{T + 9}\nu,i,{T}\nv,j,{T + 5}\n")

    data = read_interactions(path)

    assert (data.user_ids, data.item_ids, data.event_types) == (["v", "u"], ["i", "j"], [])
    assert data.users.tolist() == [1, 0, 0]
    assert data.items.tolist() == [0, 1, 0]
    assert data.types is None
    assert data.timestamps_ms.tolist() == [T_MS, T_MS + 5000, T_MS + 9000]
    assert (data.users.dtype, data.timestamps_ms.dtype) == (np.int32, np.int64)


@pytest.mark.parametrize("name", ["event", "event_type"])
def test_kinds_of_events_are_read_where_there_are_any(tmp_path: Path, name: str) -> None:
    """The column may have either name; an empty field is no kind."""
    text = f"user,item,timestamp,{name}\nu,i,{T},pv\nu,j,{T},\nu,k,{T},buy\n"

    kinds = [row.event_type for row in rows(write(tmp_path / "a.csv", text))]

    assert kinds == ["pv", None, "buy"]


def test_equal_times_keep_the_order_of_the_file(tmp_path: Path) -> None:
    """Sorting by time is stable, over blocks too."""
    n = 3 * BLOCK_ROWS
    lines = [f"u,{i},{T + (i * 7919) % 5}" for i in range(n)]
    path = write(tmp_path / "a.csv", "user,item,timestamp\n" + "\n".join(lines))

    items = [int(row.item) for row in rows(path)]

    assert items == sorted(range(n), key=lambda i: ((i * 7919) % 5, i))


@pytest.mark.parametrize(
    ("times", "expected_ms"),
    [
        (["0", "99999"], [0, 99_999_000]),
        (["5", "1600000000000"], [5, 1_600_000_000_000]),
        (["1600000000.25", "1600000001"], [1_600_000_000_250, 1_600_000_001_000]),
        ([" 1600000000000.0 "], [1_600_000_000_000]),
        (["4102444799"], [4_102_444_799_000]),
        (["1.001", "1600000000.001"], [1001, 1_600_000_000_001]),
        (["5", "100000000000"], [5, 100_000_000_000]),
    ],
)
def test_the_largest_timestamp_tells_the_unit(
    tmp_path: Path, times: list[str], expected_ms: list[int]
) -> None:
    """Under 1e11 the whole file is in seconds, else the whole file is in milliseconds."""
    text = "user,item,timestamp\n" + "".join(f"u,i,{time}\n" for time in times)

    assert [row.timestamp_ms for row in rows(write(tmp_path / "a.csv", text))] == expected_ms


@pytest.mark.parametrize(
    ("line", "message"),
    [
        ("u,i", "expected 3 fields as in line 1, got 2"),
        (f"u,i,{T},x", "expected 3 fields as in line 1, got 4"),
        (f",i,{T}", "expected a text for user, got nothing"),
        (f"u,,{T}", "expected a text for item, got nothing"),
        ("u,i,", "expected a timestamp in seconds or milliseconds, 1970 to 2099, got ''"),
        ("u,i,2020-01-01", "got '2020-01-01'"),
        ("u,i,-1", "got '-1'"),
        ("u,i,nan", "got 'nan'"),
        ("u,i,inf", "got 'inf'"),
        ("u,i,4102444800", "got '4102444800'"),
        ("u,i,1600000000000000", "got '1600000000000000'"),
        (f'u,"i"x,{T}', "expected well-formed fields"),
        (f"u,i{'x' * 200_000},{T}", "expected well-formed fields"),
    ],
    ids=lambda value: value[:30],
)
def test_a_broken_line_is_named(tmp_path: Path, line: str, message: str) -> None:
    """The error has file, line (blank ones and line ends in fields counted) and trouble."""
    text = f'user,item,timestamp\nu,i,{T}\n\n"u\nv",i,{T}\n{line}\nu,i,{T}\n'
    path = write(tmp_path / "a.csv", text)

    with pytest.raises(DataFileInvalid) as refused:
        read_interactions(path)

    assert str(refused.value).startswith(f"{path}, line 6: ")
    assert message in str(refused.value)


def test_a_milliseconds_file_with_a_stray_is_told_by_line(tmp_path: Path) -> None:
    """A time out of range in a file of milliseconds is found too."""
    path = write(tmp_path / "a.csv", f"user,item,timestamp\nu,i,{T_MS}\nu,i,{T_MS * 1000}\n")

    with pytest.raises(DataFileInvalid, match=r"line 3: .* got '1600000000000000'"):
        read_interactions(path)


def test_a_table_that_changes_while_it_is_read_is_said_to(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """What was wrong with it a moment ago cannot be named any more."""
    path = write(tmp_path / "a.csv", f"user,item,timestamp\nu,i,{T}\nu,,{T}\n")
    name_the_line = interactions._refuse_first_broken

    def replaced(*arguments: object) -> None:
        write(path, f"user,item,timestamp\nu,i,{T}\n")
        name_the_line(*arguments)

    monkeypatch.setattr(interactions, "_refuse_first_broken", replaced)

    with pytest.raises(DataFileInvalid, match=r"a\.csv: expected the same content as a moment ago"):
        read_interactions(path)


def test_names_of_columns_may_be_capitals_with_blanks_around(tmp_path: Path) -> None:
    """As spreadsheets make them; ids are taken as they are."""
    path = write(tmp_path / "a.csv", f"User, ITEM ,Timestamp, Event\nU, I ,{T},View\n")

    assert rows(path) == [Interaction("U", " I ", T_MS, "View")]


def test_line_ends_within_quotes_are_part_of_the_text(tmp_path: Path) -> None:
    """None is turned into another: ids are compared byte by byte."""
    ids = ["a\r\nb", "a\nb", "a\rb"]
    lines = [f'u,"{one}",{T}\r\n' for one in ids]
    path = write(tmp_path / "a.csv", "user,item,timestamp\r\n" + "".join(lines))

    assert [row.item for row in rows(path)] == ids


@pytest.mark.parametrize("name", ["a.csv.gz", "a.seq.txt.gz"])
def test_a_gzip_with_damage_in_its_midst_is_refused(tmp_path: Path, name: str) -> None:
    """Its head is whole, so that the damage shows in the content alone."""
    path = write(tmp_path / name, "user,item,timestamp\n")
    data = bytearray(path.read_bytes())
    data[10] = 0xFF  # right behind the head: a kind of block that there is not
    path.write_bytes(data)

    with pytest.raises(DataFileInvalid, match=rf"{name}: cannot be read: .* invalid block type"):
        read_interactions(path)


def test_text_may_be_quoted_or_begin_with_a_byte_order_mark(tmp_path: Path) -> None:
    """Commas, quotes and line ends in quoted fields are part of the ids."""
    text = f'user,item,timestamp\r\n"a,b","say ""hi""\n",{T}\r\n'

    assert rows(write(tmp_path / "a.csv", text, "utf-8-sig")) == [
        Interaction("a,b", 'say "hi"\n', T_MS, None)
    ]


@pytest.mark.parametrize(
    ("name", "data", "message"),
    [
        ("a.csv", b"", "expected the columns user,item,timestamp, got none"),
        ("a.csv", b"user,item\nu,i\n", "expected the columns user,item,timestamp, got user,item"),
        ("a.csv", b"user,item,timestamp\n", "expected at least one row, got none"),
        ("a.csv", b"user,item,timestamp\nu,i,1\nu,\xff,1\n", "line 3: expected UTF-8, got other"),
        ("a.csv.gz", b"user,item,timestamp\nu,i,1\n", "cannot be read: Not a gzipped file"),
        ("a.csv.gz", gzip.compress(b"user,item,timestamp\n" * 99)[:-9], "cannot be read"),
        # What is no UTF-8 ends before the damage, and what is read again to find its line does not.
        ("a.csv.gz", gzip.compress(b"user,item,timestamp\nu,\xff")[:-8], "cannot be read"),
        ("a.seq.txt", b"\n\n", "expected at least one line, got none"),
        ("a.txt", b"", "expected a name that ends in one of .csv, .csv.gz, .tsv"),
        ("a.seq.txt", b"u i\nv\n", "line 2: expected a user and at least one item, got 'v' alone"),
        ("a.seq.txt", b"u i\nv i\n\nu j\n", "line 4: expected one line per user .user 'u' has"),
    ],
)
def test_a_file_of_no_known_form_is_refused(
    tmp_path: Path, name: str, data: bytes, message: str
) -> None:
    """The error names the file and what is wrong with it."""
    path = tmp_path / name
    path.write_bytes(data)

    with pytest.raises(DataFileInvalid, match=message) as refused:
        read_interactions(path)

    assert str(refused.value).startswith(str(path))


def test_a_file_that_is_not_there_is_refused(tmp_path: Path) -> None:
    """The error names it; a folder is no file either."""
    with pytest.raises(
        DataFileInvalid, match=r"none.csv: cannot be read: No such file or directory$"
    ):
        read_interactions(tmp_path / "none.csv")
    (tmp_path / "folder.csv").mkdir()
    with pytest.raises(DataFileInvalid, match="Is a directory"):
        read_interactions(tmp_path / "folder.csv")


@pytest.mark.parametrize("name", ["a.seq.txt", "a.seq.txt.gz"])
def test_sequences_get_an_even_clock(tmp_path: Path, name: str) -> None:
    """Item j of n stands at the share j / (n + 1) of the year 2000; equal times by line."""
    day_ms = 86_400_000
    path = write(tmp_path / name, "u a b a \n\nv\tc\nw d e f g h\n")

    data = list(read_interactions(path).rows())

    start_ms = SEQUENCE_START_MS
    assert [(row.user, row.item, (row.timestamp_ms - start_ms) / day_ms) for row in data] == [
        ("w", "d", 61.0),
        ("u", "a", 91.5),
        ("w", "e", 122.0),
        ("u", "b", 183.0),
        ("v", "c", 183.0),
        ("w", "f", 183.0),
        ("w", "g", 244.0),
        ("u", "a", 274.5),
        ("w", "h", 305.0),
    ]


def test_a_part_of_the_rows_can_be_read(tmp_path: Path) -> None:
    """Rows from start up to stop; a stop beyond the end is the end."""
    text = "user,item,timestamp\n" + "".join(f"u,{i},{T + i}\n" for i in range(10_000))
    data = read_interactions(write(tmp_path / "a.csv", text))

    assert len(data) == 10_000
    assert [row.item for row in data.rows(4000, 9000)] == [str(i) for i in range(4000, 9000)]
    assert [row.item for row in data.rows(9998, 20_000)] == ["9998", "9999"]
    assert list(data.rows(3, 3)) == []


@pytest.mark.parametrize(
    ("name", "text"),
    [
        ("t.csv", 'title,item,genre\n"Plates, small",a,x\nCups,b,y\n'),
        ("t.tsv", "item\ttitle\na\tPlates, small\nb\tCups\n"),
        ("t.tsv.gz", "item\ttitle\na\tPlates, small\nb\tCups\n"),
    ],
)
def test_titles_are_read(tmp_path: Path, name: str, text: str) -> None:
    """Titles come from commas or tabs, gzipped or not, beside other columns."""
    assert read_titles(write(tmp_path / name, text)) == {"a": "Plates, small", "b": "Cups"}


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("item,name\na,A\n", "expected the columns item,title, got item,name"),
        ("item,title\na,A\na,B\n", "line 3: expected an item that has no line before, got 'a'"),
        ("item,title\n,A\n", "line 2: expected an item that has no line before, got ''"),
        ("item,title\na\n", "line 2: expected 2 fields as in line 1, got 1"),
    ],
)
def test_a_broken_file_of_titles_is_refused(tmp_path: Path, text: str, message: str) -> None:
    """The error has file, line and trouble."""
    with pytest.raises(DataFileInvalid, match=message):
        read_titles(write(tmp_path / "t.csv", text))


def test_the_bundled_data_is_whole() -> None:
    """The counts and digests that its description states, and a title for every item."""
    folder = resources.files("pipeline.data")
    with (
        resources.as_file(folder / "online-retail.csv.gz") as clicks,
        resources.as_file(folder / "online-retail-items.tsv.gz") as items,
    ):
        description = (folder / "README.md").read_text()
        digests = [hashlib.sha256(file.read_bytes()).hexdigest() for file in (clicks, items)]
        data, titles = read_interactions(clicks), read_titles(items)

    assert (len(data), len(data.user_ids), len(data.item_ids)) == (397_924, 4_339, 3_665)
    assert data.timestamps_ms[[0, -1]].tolist() == [1_291_191_960_000, 1_323_435_000_000]
    assert set(data.item_ids) == titles.keys()
    assert [digest for digest in digests if digest not in description] == []


HAS_ARROW = importlib.util.find_spec("pyarrow") is not None


@pytest.mark.skipif(HAS_ARROW, reason="tells what happens without pyarrow")
def test_parquet_without_its_library_is_refused(tmp_path: Path) -> None:
    """The error says what to install."""
    with pytest.raises(DataFileInvalid, match=r"pip install 'lrurec-stream\[parquet\]'"):
        read_interactions(tmp_path / "a.parquet")


@pytest.mark.skipif(not HAS_ARROW, reason="the optional pyarrow is not installed")
class TestParquet:
    def write(self, path: Path, **columns: object) -> Path:
        arrow = importlib.import_module("pyarrow")
        parquet = importlib.import_module("pyarrow.parquet")
        parquet.write_table(arrow.table(columns), path, row_group_size=2)
        return path

    def test_columns_of_any_type_are_read(self, tmp_path: Path) -> None:
        """Integers and categories are ids, a null kind is none, other columns are left alone."""
        arrow = importlib.import_module("pyarrow")
        path = self.write(
            tmp_path / "a.parquet",
            more=[0.5, 1.5, 2.5],
            user=[3, 4, 3],
            item=arrow.array(["a", "b", "a"]).dictionary_encode(),
            timestamp=[T + 5, T, T + 5],
            event=["pv", None, "buy"],
        )

        assert rows(path) == [
            Interaction("4", "b", T_MS, None),
            Interaction("3", "a", T_MS + 5000, "pv"),
            Interaction("3", "a", T_MS + 5000, "buy"),
        ]

    @pytest.mark.parametrize("kind", ["string", "large_string", "string_view"])
    def test_texts_of_any_kind_are_ids(self, tmp_path: Path, kind: str) -> None:
        """As other programs write them."""
        arrow = importlib.import_module("pyarrow")
        ids = arrow.array(["b", "a"]).cast(getattr(arrow, kind)())
        path = self.write(tmp_path / "a.parquet", user=ids, item=ids, timestamp=[T, T + 1])

        assert rows(path) == [
            Interaction("b", "b", T_MS, None),
            Interaction("a", "a", T_MS + 1000, None),
        ]

    def test_dates_are_taken_as_such(self, tmp_path: Path) -> None:
        """A column of timestamps needs no rule about units, early dates included."""
        arrow = importlib.import_module("pyarrow")
        times = arrow.array([5, T_MS * 1000], arrow.timestamp("us"))
        path = self.write(tmp_path / "a.parquet", user=["u", "u"], item=["a", "b"], timestamp=times)

        assert [row.timestamp_ms for row in rows(path)] == [0, T_MS]

    @pytest.mark.parametrize(
        ("kind", "never", "message"),
        [
            ("date32", 2_932_896, "got 9999-12-31"),
            ("date32", 10**7, r"got 10000000 as date32\[day\]"),
            ("ms", 253_402_214_400_000, "got 9999-12-31 00:00:00"),
            ("us", 10**18, r"got 10{18} as timestamp\[us\]"),
            ("ns", MAX_TIMESTAMP_MS * 10**6 + 1, "got 2100-01-01|got 410244480{10}1 as timestamp"),
            ("ms", -1, "got 1969-12-31 23:59:59.999000"),
        ],
    )
    def test_a_date_out_of_range_is_named(
        self, tmp_path: Path, kind: str, never: int, message: str
    ) -> None:
        """Also one so late that the numbers of a file's times would be taken for milliseconds."""
        arrow = importlib.import_module("pyarrow")
        is_date = kind == "date32"
        numbers = arrow.array([20_000, never], arrow.int32() if is_date else arrow.int64())
        times = numbers.view(arrow.date32() if is_date else arrow.timestamp(kind))
        path = self.write(tmp_path / "a.parquet", user=["u", "u"], item=["a", "b"], timestamp=times)

        with pytest.raises(DataFileInvalid, match=f"row 2: expected a timestamp .* {message}"):
            read_interactions(path)

    def test_ids_may_have_more_than_two_gibibytes(self) -> None:
        """As texts they could not be one array; all of them are one id here, in a few bytes."""
        arrow = importlib.import_module("pyarrow")
        chunk, n = arrow.array(["x" * 2**20]), 2**11 + 1

        texts, codes = encode_texts(Path("a"), "user", arrow.chunked_array([chunk] * n), arrow)

        assert texts == chunk.to_pylist()
        assert (len(codes), codes.any()) == (n, False)

    @pytest.mark.parametrize("name", ["user", "item", "event"])
    def test_an_id_that_is_no_utf_8_is_named(self, tmp_path: Path, name: str) -> None:
        """Parquet does not check its texts."""
        arrow = importlib.import_module("pyarrow")
        bad = arrow.array([b"ok", b"\xff", b"\xfe"]).view(arrow.string())
        ids = {key: ["a", "b", "c"] for key in ("user", "item", "event")} | {name: bad}
        path = self.write(tmp_path / "a.parquet", **ids, timestamp=[T, T, T])

        with pytest.raises(DataFileInvalid, match=f"row 2: expected UTF-8 as {name}, got other"):
            read_interactions(path)

    @pytest.mark.parametrize(
        ("change", "message"),
        [
            ({"user": [1.0, 2.0]}, "expected texts or integers as user, got double"),
            ({"user": ["u", None]}, "row 2: expected a text for user, got nothing"),
            ({"item": ["", "i"]}, "row 1: expected a text for item, got nothing"),
            ({"timestamp": [T, None]}, "row 2: expected a timestamp .* got None"),
            ({"timestamp": [T, -1]}, "row 2: expected a timestamp .* got -1"),
            ({"timestamp": [T, 2**62 + 1]}, f"row 2: expected a timestamp .* got {2**62 + 1}"),
            ({"timestamp": ["1", "2"]}, "expected numbers or dates as timestamp, got string"),
        ],
    )
    def test_a_broken_column_is_named(
        self, tmp_path: Path, change: dict[str, object], message: str
    ) -> None:
        """The error has file, row and trouble."""
        columns = {"user": ["u", "v"], "item": ["i", "i"], "timestamp": [T, T]} | change

        with pytest.raises(DataFileInvalid, match=message):
            read_interactions(self.write(tmp_path / "a.parquet", **columns))

    def test_a_parquet_that_is_not_there_is_refused(self, tmp_path: Path) -> None:
        """As any other file."""
        with pytest.raises(DataFileInvalid, match=r"gone\.parquet: cannot be read as parquet"):
            read_interactions(tmp_path / "gone.parquet")

    def test_a_file_that_is_no_parquet_is_refused(self, tmp_path: Path) -> None:
        """The error names it."""
        with pytest.raises(DataFileInvalid, match="cannot be read as parquet"):
            read_interactions(write(tmp_path / "a.parquet", "user,item,timestamp\n"))
