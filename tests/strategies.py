"""Hypothesis strategies for states: layouts, heads, hidden states, user keys, rows."""

from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
from hypothesis import strategies as st

from state.row import Heads, RowLayout

layouts = st.builds(
    RowLayout,
    ring=st.integers(1, 9),
    recommended=st.integers(0, 4),
    blocks=st.integers(1, 3),
    channels=st.integers(1, 5),
)

item_hashes = st.integers(1, 2**64 - 1)

user_keys = st.one_of(
    st.binary(max_size=4),
    st.text(max_size=8).map(str.encode),
    st.sampled_from([b"", b"\x00", b"\x01", b"\x00position", b"\x01\x00position", b"\xff" * 9]),
)

stored_rows = st.one_of(st.none(), st.binary(max_size=40))
"""What a batch may hold for a key: a row, or None to delete it."""


@dataclass(frozen=True, kw_only=True)
class States:
    """States of users as the codec takes them."""

    layout: RowLayout
    heads: Heads
    hidden: npt.NDArray[np.complex64]


@st.composite
def states(draw: st.DrawFn, *, min_users: int = 0, max_users: int = 5) -> States:
    """States of some layout with any bits in every field, NaN patterns included."""
    layout = draw(layouts)
    n = draw(st.integers(min_users, max_users))
    random = np.random.default_rng(draw(st.integers(0, 2**32 - 1)))
    heads = np.frombuffer(random.bytes(n * layout.head_dtype.itemsize), layout.head_dtype)
    hidden = np.frombuffer(random.bytes(n * layout.blocks * layout.channels * 8), np.complex64)
    return States(
        layout=layout,
        heads=heads,
        hidden=hidden.reshape(n, layout.blocks, layout.channels),
    )
