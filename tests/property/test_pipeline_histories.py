"""Windows over the users' items, held to plain lists."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from pipeline.worker.histories import Histories, repeats_recent

ITEMS = st.integers(1, 6)
USERS = st.lists(
    st.tuples(st.lists(ITEMS, max_size=5), st.lists(ITEMS, max_size=4)), min_size=1, max_size=5
)


def histories_of(users: list[tuple[list[int], list[int]]]) -> Histories:
    remembered = np.zeros((len(users), 5), np.uint64)
    for row, (old, _) in zip(remembered, users, strict=True):
        row[: len(old)] = old
    lengths = np.array([len(old) for old, _ in users], np.int64)
    user = np.repeat(np.arange(len(users)), [len(new) for _, new in users])
    items = np.array([item for _, new in users for item in new], np.uint64)
    return Histories(remembered, lengths, user, items)


def newest_first(items: list[int], size: int) -> list[int]:
    window = items[::-1][:size]
    return window + [0] * (size - len(window))


@given(users=USERS, size=st.integers(1, 7))
def test_windows_hold_the_last_items_before_and_after_each_event(
    users: list[tuple[list[int], list[int]]], size: int
) -> None:
    """Before, after and at the end: the newest `size` items of that user alone."""
    histories = histories_of(users)
    every = np.arange(sum(len(new) for _, new in users))

    before = histories.before(every, size).tolist()
    after = histories.after(every, size).tolist()
    at_end = histories.at_end(np.arange(len(users)), size).tolist()

    moments = [(old + new, len(old) + i) for old, new in users for i in range(len(new))]
    assert before == [newest_first(items[:at], size) for items, at in moments]
    assert after == [newest_first(items[: at + 1], size) for items, at in moments]
    assert at_end == [newest_first(old + new, size) for old, new in users]


@given(
    windows=st.lists(
        st.tuples(st.lists(ITEMS, min_size=8, max_size=8), st.integers(0, 8), ITEMS), min_size=1
    ),
    k=st.integers(1, 4),
)
def test_repeats_are_found_among_the_last_distinct_items(
    windows: list[tuple[list[int], int, int]], k: int
) -> None:
    """An item repeats if it is one of the k last distinct items; padding counts for nothing."""
    window = np.zeros((len(windows), 8), np.uint64)
    for row, (items, length, _) in zip(window, windows, strict=True):
        row[:length] = items[:length]
    items = np.array([item for _, _, item in windows], np.uint64)

    hits = repeats_recent(window, items, k).tolist()

    assert hits == [
        item in list(dict.fromkeys(seen[:length]))[:k] for seen, length, item in windows
    ]
