"""Laws of the state row: it comes back whole, damage shows, rings agree with a plain list."""

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from state.errors import StateFormatUnknown
from state.row import Heads, RowLayout, append_items, ring_items
from tests.strategies import States, item_hashes, layouts, states


@given(states())
def test_a_state_comes_back_bit_by_bit(states: States) -> None:
    """decode(encode(states)) is the states, whatever bits they hold."""
    rows = states.layout.encode(states.heads, states.hidden)
    decoded = states.layout.decode(rows)

    assert decoded.heads.tobytes() == states.heads.tobytes()
    assert decoded.hidden.tobytes() == states.hidden.tobytes()
    assert not decoded.damaged.any()
    assert not decoded.converted.any()
    assert {len(row) for row in rows} <= {states.layout.row_bytes}


@given(states(min_users=1, max_users=1), layouts, st.data())
def test_a_changed_byte_never_decodes(
    states: States, reader: RowLayout, data: st.DataObject
) -> None:
    """A byte that is not what was written makes the row damaged or its format unknown."""
    (row,) = states.layout.encode(states.heads, states.hidden)
    at = data.draw(st.integers(0, len(row) - 1), label="at")
    changed = bytearray(row)
    changed[at] ^= data.draw(st.integers(1, 255), label="flipped bits")

    for layout in (states.layout, reader):
        if 4 <= at < 8:
            with pytest.raises(StateFormatUnknown):
                layout.decode([bytes(changed)])
        else:
            decoded = layout.decode([bytes(changed)])
            assert decoded.damaged.tolist() == [True]
            assert decoded.converted.tolist() == [False]
            assert decoded.heads.tobytes() == layout.new_heads(1).tobytes()
            assert not decoded.hidden.any()


@given(states(min_users=1, max_users=1), st.binary(max_size=20), st.data())
def test_a_row_of_another_length_never_decodes(
    states: States, more: bytes, data: st.DataObject
) -> None:
    """Neither a row cut off anywhere nor one with bytes behind it passes."""
    (row,) = states.layout.encode(states.heads, states.hidden)
    cut = row[: data.draw(st.integers(0, len(row) - 1), label="cut at")]

    decoded = states.layout.decode([cut, row + b"\x00" + more])

    assert decoded.damaged.tolist() == [True, True]


class PlainUser:
    """A user's history as a list: the oracle of the ring."""

    def __init__(self) -> None:
        self.event_count = 0
        self.kept: list[int] = []

    def apply(self, item: int, ring: int) -> None:
        """Add one event."""
        self.event_count += 1
        self.kept = [*self.kept, item][-ring:]

    def slots(self, ring: int) -> list[int]:
        """Where a ring keeps these items."""
        slots = [0] * ring
        for age, item in enumerate(reversed(self.kept)):
            slots[(self.event_count - 1 - age) % ring] = item
        return slots


def assert_rings_agree(heads: Heads, users: list[PlainUser], ring: int) -> None:
    """Heads hold the same items in the same slots as the lists."""
    items, lengths = ring_items(heads)
    assert heads["event_count"].tolist() == [user.event_count for user in users]
    assert heads["ring"].tolist() == [user.slots(ring) for user in users]
    assert lengths.tolist() == [len(user.kept) for user in users]
    assert items.tolist() == [user.kept + [0] * (ring - len(user.kept)) for user in users]


@given(
    st.lists(
        st.tuples(layouts, st.lists(st.tuples(st.integers(0, 2), item_hashes), max_size=25)),
        min_size=1,
        max_size=4,
    )
)
def test_rings_hold_the_newest_items_through_every_change_of_layout(
    periods: list[tuple[RowLayout, list[tuple[int, int]]]],
) -> None:
    """Under layouts that follow one another, a ring is the end of a plain list, slot by slot."""
    users = [PlainUser() for _ in range(3)]
    layout = periods[0][0]
    heads = layout.new_heads(3)
    for following, events in periods:
        hidden = np.ones((3, layout.blocks, layout.channels), np.complex64)
        decoded = following.decode(layout.encode(heads, hidden))
        assert decoded.converted.tolist() == [following != layout] * 3
        heads, layout = decoded.heads, following
        for user in users:
            user.kept = user.kept[-layout.ring :]
        assert_rings_agree(heads, users, layout.ring)

        rows_index = np.array([user for user, _ in events], np.int64)
        append_items(heads, rows_index, np.array([item for _, item in events], np.uint64))
        for user, item in events:
            users[user].apply(item, layout.ring)
        assert_rings_agree(heads, users, layout.ring)


@given(states(min_users=1), layouts)
def test_a_converted_state_is_of_no_model(states: States, reader: RowLayout) -> None:
    """Under another layout only what no model made is kept, and the state starts here."""
    heads = states.heads.copy()
    heads["event_count"] = np.abs(heads["event_count"] >> 1)
    decoded = reader.decode(states.layout.encode(heads, states.hidden))

    if reader == states.layout:
        assert not decoded.converted.any()
        return
    assert decoded.converted.all()
    assert not decoded.hidden.any()
    for name in ("event_count", "partition", "offset", "timestamp_ms", "event_ids"):
        assert decoded.heads[name].tolist() == heads[name].tolist()
    for name in ("weights_id", "model_version", "last_item"):
        assert not decoded.heads[name].any()
    assert decoded.heads["started_at"].tolist() == heads["event_count"].tolist()
    kept = min(reader.recommended, states.layout.recommended)
    assert (
        decoded.heads["recommended"][:, :kept].tolist() == heads["recommended"][:, :kept].tolist()
    )
    assert not decoded.heads["recommended"][:, kept:].any()
