"""The state row: its bytes, its refusals and what it does with rows it cannot take."""

import struct

import numpy as np
import pytest
from xxhash import xxh3_64_intdigest

from state.errors import StateFormatUnknown
from state.row import Heads, RowLayout, append_items, layout_of, ring_items

TINY = RowLayout(ring=3, recommended=1, blocks=1, channels=2)
LAYOUTS = [TINY, RowLayout(ring=50, recommended=10, blocks=2, channels=512)]


def tiny_rows(n: int) -> list[bytes]:
    """Rows of n users of the tiny layout, each with an event count and a hidden state."""
    heads = TINY.new_heads(n)
    append_items(heads, np.arange(n), np.arange(1, n + 1, dtype=np.uint64))
    return TINY.encode(heads, np.full((n, 1, 2), 1 + 2j, np.complex64))


def sealed(start: bytes, body: bytes) -> bytes:
    """A row with a right checksum over any body, without the codec."""
    return start + struct.pack("<Q", xxh3_64_intdigest(body)) + body


def test_a_row_of_format_2_has_these_bytes() -> None:
    """The format on disk and in the changelog is fixed, field by field."""
    heads = TINY.new_heads(1)
    names = ("weights_id", "model_version", "event_count", "started_at", "partition", "offset")
    for value, name in enumerate((*names, "timestamp_ms", "last_item", "forgotten_before_ms"), 101):
        heads[name] = value
    heads["event_ids"] = np.arange(201, 209)
    heads["recommended"] = 301
    heads["ring"] = (401, 402, 403)
    hidden = np.array([[[1.5 - 2j, 0.25j]]], np.complex64)

    (row,) = TINY.encode(heads, hidden)

    body = struct.pack("<4I", 3, 1, 1, 2)
    body += struct.pack("<9q", *range(101, 110))
    body += struct.pack("<8Q", *range(201, 209))
    body += struct.pack("<4Q", 301, 401, 402, 403)
    body += struct.pack("<4f", 1.5, -2.0, 0.0, 0.25)
    assert row == sealed(b"LRst\x02\x00\x00\x00", body)
    assert TINY.row_bytes == len(row)


def format_1(row: bytes) -> bytes:
    """A row as format 1 wrote it, without the time up to which its user is forgotten."""
    return sealed(b"LRst\x01\x00\x00\x00", row[16:96] + row[104:])


def test_rows_of_format_1_are_read_as_of_users_who_were_never_forgotten() -> None:
    """They stand beside newer ones; a flipped bit shows in them, too."""
    old, new = tiny_rows(2)
    damaged = format_1(old)[:-1] + b"\x7f"
    short = format_1(old)[:-8]

    decoded = TINY.decode([format_1(old), new, damaged, short])

    assert layout_of(format_1(old)) == TINY
    assert decoded.damaged.tolist() == [False, False, True, True]
    assert not decoded.converted.any()
    assert decoded.heads["ring"][:2, 0].tolist() == [1, 2]
    assert (decoded.hidden[:2] == 1 + 2j).all()
    assert not decoded.heads["forgotten_before_ms"].any()


def test_a_new_user_has_no_history() -> None:
    """A head starts with nothing applied and nothing known."""
    heads = TINY.new_heads(2)

    assert heads["offset"].tolist() == [-1, -1]
    assert heads["partition"].tolist() == [-1, -1]
    others = set(TINY.head_dtype.names or ()) - {"offset", "partition"}
    assert all(not heads[name].any() for name in others)


def test_a_batch_of_rows_is_aligned_in_memory() -> None:
    """Every field of a head and the hidden state starts at a multiple of eight bytes."""
    layout = RowLayout(ring=7, recommended=3, blocks=1, channels=1)

    offsets = [offset for _, offset, *_ in (layout.head_dtype.fields or {}).values()]
    row = layout.row_dtype.fields or {}
    offsets += [row["head"][1], row["hidden"][1], layout.row_bytes]

    assert all(offset % 8 == 0 for offset in offsets)


def test_no_rows_decode_to_no_states() -> None:
    """An empty batch is a batch."""
    decoded = TINY.decode([])

    assert decoded.heads.shape == (0,)
    assert decoded.hidden.shape == (0, 1, 2)
    assert TINY.encode(decoded.heads, decoded.hidden) == []


@pytest.mark.parametrize("n", [1, 63, 64, 65, 200])
def test_batches_of_any_size_keep_their_order(n: int) -> None:
    """Row i of the input is entry i of the output, however many rows are worked on at once."""
    decoded = TINY.decode(tiny_rows(n))

    assert decoded.heads["ring"][:, 0].tolist() == list(range(1, n + 1))
    assert (decoded.hidden == 1 + 2j).all()
    assert not decoded.damaged.any()
    assert not decoded.converted.any()


@pytest.mark.parametrize(
    "sizes",
    [
        {"ring": 0},
        {"recommended": -1},
        {"blocks": 0},
        {"channels": 0},
        {"channels": 2**20 + 1},
    ],
    ids=str,
)
def test_a_layout_refuses_impossible_sizes(sizes: dict[str, int]) -> None:
    """The message names the field, the rule and the value."""
    (name, value) = next(iter(sizes.items()))

    with pytest.raises(
        ValueError, match=rf"RowLayout\.{name} must be from \d+ to \d+, got {value}"
    ):
        RowLayout(**({"ring": 3, "recommended": 1, "blocks": 1, "channels": 2} | sizes))


def test_a_layout_refuses_rows_that_no_changelog_takes() -> None:
    """Sizes that are fine one by one may be too much together."""
    with pytest.raises(ValueError, match=r"rows of at most 67108864 bytes, got RowLayout\(ring=3"):
        RowLayout(ring=3, recommended=1, blocks=2**10, channels=2**13)


@pytest.mark.parametrize("layout", LAYOUTS, ids=str)
def test_a_flipped_bit_in_the_sizes_is_damage(layout: RowLayout) -> None:
    """However large a row then claims to be: nothing is allocated for it, and nothing fails."""
    (row,) = layout.encode(
        layout.new_heads(1), np.zeros((1, layout.blocks, layout.channels), np.complex64)
    )
    rows = [
        row[:at] + bytes([row[at] ^ 1 << bit]) + row[at + 1 :]
        for at in range(16, 32)
        for bit in range(8)
    ]
    rows.append(row[:16] + struct.pack("<4I", *[2**20] * 4) + row[32:])

    assert layout.decode(rows).damaged.all()
    assert [layout_of(one) for one in rows] == [None] * len(rows)


@pytest.mark.parametrize(
    ("heads", "hidden"),
    [
        (TINY.new_heads(2), np.zeros((1, 1, 2), np.complex64)),
        (TINY.new_heads(1), np.zeros((1, 2, 1), np.complex64)),
        (TINY.new_heads(1), np.zeros((1, 1, 2), np.complex128)),
        (
            RowLayout(ring=4, recommended=1, blocks=1, channels=2).new_heads(1),
            np.zeros((1, 1, 2), np.complex64),
        ),
    ],
    ids=["count", "shape", "dtype", "heads of another layout"],
)
def test_encode_refuses_what_is_not_of_its_layout(heads: Heads, hidden: np.ndarray) -> None:
    """A wrong shape or dtype is the caller's mistake, never a silent cast."""
    with pytest.raises(ValueError, match=r"cannot encode for RowLayout\(ring=3"):
        TINY.encode(heads, hidden)


def test_a_damaged_row_leaves_its_neighbours_alone() -> None:
    """Damage is found row by row, and what is damaged becomes a new user."""
    rows = tiny_rows(3)
    rows[1] = rows[1][:-1] + b"\x7f"

    decoded = TINY.decode(rows)

    assert decoded.damaged.tolist() == [False, True, False]
    assert decoded.heads["event_count"].tolist() == [1, 0, 1]
    assert decoded.heads["offset"][1] == -1
    assert decoded.hidden[:, 0, 0].tolist() == [1 + 2j, 0, 1 + 2j]


def test_every_byte_of_a_row_is_guarded() -> None:
    """There is no gap: one flipped bit anywhere shows, in the version as an unknown format."""
    (row,) = tiny_rows(1)
    unknown, damaged = set(), set()
    for at in range(len(row)):
        changed = row[:at] + bytes([row[at] ^ 1]) + row[at + 1 :]
        try:
            damaged |= {at} if TINY.decode([changed]).damaged.all() else set()
        except StateFormatUnknown:
            unknown.add(at)

    assert unknown == set(range(4, 8))
    assert damaged == set(range(len(row))) - unknown


def test_two_rows_that_swapped_their_ends_are_both_damaged() -> None:
    """The checksum ties a head to its own hidden state."""
    one, two = TINY.encode(TINY.new_heads(2), np.array([[[1, 1]], [[2, 2]]]).astype(np.complex64))

    decoded = TINY.decode([one[:-16] + two[-16:], two[:-16] + one[-16:]])

    assert decoded.damaged.all()


@pytest.mark.parametrize(
    "row",
    [
        b"",
        b"LRst",
        b"LRst\x02\x00\x00\x00",
        b"x" * TINY.row_bytes,
        sealed(b"LRst\x02\x00\x00\x00", struct.pack("<4I", 0, 1, 1, 2) + bytes(200)),
        sealed(b"LRst\x02\x00\x00\x00", struct.pack("<4I", 2**32 - 1, 1, 1, 2) + bytes(200)),
        sealed(b"LRst\x02\x00\x00\x00", struct.pack("<4I", 3, 1, 1, 2) + bytes(200)),
    ],
    ids=["empty", "magic", "start", "foreign", "no ring", "too large a ring", "other length"],
)
def test_bytes_that_are_no_row_are_damaged(row: bytes) -> None:
    """Whatever lies where a row should be is marked, also with a right checksum."""
    decoded = TINY.decode([row, *tiny_rows(1)])

    assert decoded.damaged.tolist() == [True, False]


def test_an_unknown_format_version_is_refused_by_name() -> None:
    """A row of a newer release stops the program instead of passing for a damaged one."""
    rows = tiny_rows(2)
    rows[1] = rows[1][:4] + b"\x03\x00\x00\x00" + rows[1][8:]

    with pytest.raises(
        StateFormatUnknown, match=r"row 1 of 2: expected .* version 2, got version 3"
    ) as caught:
        TINY.decode(rows)

    assert str(caught.value.at(7, [b"a", b"\x1b"])).startswith(
        r"partition 7, key b'\x1b': row 1 of"
    )


def test_rows_of_several_layouts_decode_in_one_batch() -> None:
    """Rows from before a change of settings are converted beside rows from after it."""
    wide = RowLayout(ring=5, recommended=2, blocks=2, channels=3)
    heads = wide.new_heads(1)
    append_items(heads, np.zeros(7, np.int64), np.arange(11, 18, dtype=np.uint64))
    heads["weights_id"] = heads["model_version"] = heads["started_at"] = heads["last_item"] = 5
    heads["recommended"] = (21, 22)
    heads["partition"], heads["offset"], heads["timestamp_ms"] = 2, 33, 44
    heads["event_ids"], heads["forgotten_before_ms"] = np.arange(51, 59), 40
    (foreign,) = wide.encode(heads, np.ones((1, 2, 3), np.complex64))
    (own,) = tiny_rows(1)

    decoded = TINY.decode([own, foreign, own, foreign[:-1] + b"x"])

    assert decoded.converted.tolist() == [False, True, False, False]
    assert decoded.damaged.tolist() == [False, False, False, True]
    converted = decoded.heads[1]
    assert not decoded.hidden[1].any()
    assert converted["ring"].tolist() == [17, 15, 16]  # events 6, 4 and 5 (from 0), each % 3
    assert converted["recommended"].tolist() == [21]
    assert converted["event_ids"].tolist() == list(range(51, 59))
    kept = {name: int(converted[name]) for name in TINY.head_dtype.names[:9]}
    assert kept == {
        "weights_id": 0,
        "model_version": 0,
        "event_count": 7,
        "started_at": 7,
        "partition": 2,
        "offset": 33,
        "timestamp_ms": 44,
        "last_item": 0,
        "forgotten_before_ms": 40,
    }


def test_a_row_that_only_lost_its_ring_to_a_longer_one_says_how_much_it_holds() -> None:
    """After a conversion to a longer ring the length counts items, not events."""
    longer = RowLayout(ring=6, recommended=1, blocks=1, channels=2)
    heads = TINY.new_heads(1)
    append_items(heads, np.zeros(8, np.int64), np.arange(1, 9, dtype=np.uint64))

    items, lengths = ring_items(
        longer.decode(TINY.encode(heads, np.zeros((1, 1, 2), np.complex64))).heads
    )

    assert items.tolist() == [[6, 7, 8, 0, 0, 0]]
    assert lengths.tolist() == [3]


@pytest.mark.parametrize(
    ("rows_index", "items", "error"),
    [
        ([0, 1], [5], ValueError),
        ([0, -1], [5, 6], ValueError),
        ([0, 1], [5, 0], ValueError),
        ([0, 2], [5, 6], IndexError),
    ],
    ids=["lengths differ", "negative index", "no item", "beyond the heads"],
)
def test_refused_events_change_nothing(
    rows_index: list[int], items: list[int], error: type[Exception]
) -> None:
    """A caller's mistake leaves every head as it was."""
    heads = TINY.new_heads(2)

    with pytest.raises(error):
        append_items(heads, np.array(rows_index), np.array(items, np.uint64))

    assert (heads == TINY.new_heads(2)).all()


def test_no_events_change_nothing() -> None:
    """An empty batch of events is a batch."""
    heads = TINY.new_heads(1)

    append_items(heads, np.empty(0, np.int64), np.empty(0, np.uint64))

    assert (heads == TINY.new_heads(1)).all()


def test_a_row_tells_the_layout_it_was_written_under() -> None:
    """The layout comes out of a row's prefix; bytes that name none give none."""
    (row,) = tiny_rows(1)
    unknown_version = row[:4] + b"\x03" + row[5:]
    no_ring = row[:16] + bytes(4) + row[20:]

    assert layout_of(row) == TINY
    assert [layout_of(other) for other in (b"", row[:20], unknown_version, no_ring)] == [None] * 4
