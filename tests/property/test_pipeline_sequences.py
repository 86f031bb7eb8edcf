"""Laws of what the trainer makes of the topic's events."""

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.vocabulary import item_hash
from pipeline.training.sequences import (
    hold_out_last_items,
    number_items,
    proportional,
    repeated_events,
)
from state.row import EVENT_IDS


@given(st.lists(st.lists(st.integers(0, 12), max_size=30), min_size=1, max_size=4))
def test_a_repeat_is_an_id_among_the_user_s_last_applied_ones(event_ids: list[list[int]]) -> None:
    """An event is a repeat if its id is one of the last applied with an id; 0 is no id."""
    expected = []
    for ids_of_user in event_ids:
        applied: list[int] = []
        for event_id in ids_of_user:
            repeated = event_id != 0 and event_id in applied[-EVENT_IDS:]
            if event_id and not repeated:
                applied.append(event_id)
            expected.append(repeated)
    user = np.repeat(np.arange(len(event_ids)), [len(ids) for ids in event_ids])

    found = repeated_events(user, np.array([i for ids in event_ids for i in ids], np.uint64))

    assert found.tolist() == expected


@given(
    hashes=st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=30),
    data=st.data(),
)
def test_who_is_held_out_today_was_held_out_before(hashes: list[int], data: st.DataObject) -> None:
    """With more users and longer histories, nobody who was trained on whole is held out then.

    Else a release could be judged by an item that an earlier one, its rival, was trained on.
    """
    most = data.draw(st.integers(1, 8))
    early = data.draw(st.lists(st.integers(1, 5), min_size=1, max_size=len(hashes)))
    growth = [data.draw(st.integers(0, 4)) if n < len(early) else 3 for n in range(len(hashes))]
    padded = [*early, *[0] * (len(hashes) - len(early))]
    before = [np.arange(1, 1 + length) for length in early]
    after = [np.arange(1, 1 + n) for n in map(sum, zip(padded, growth, strict=True))]

    trained = hold_out_last_items(before, np.array(hashes[: len(early)], np.uint64), most).train
    later = hold_out_last_items(after, np.array(hashes, np.uint64), most)

    for user, sequence in enumerate(later.train):
        held_out = len(sequence) < len(after[user])
        if held_out and user < len(early):
            assert after[user][-1] not in trained[user]
    assert (
        sum(len(sequence) < len(whole) for sequence, whole in zip(later.train, after, strict=True))
        <= most
    )


@given(
    lengths=st.lists(st.integers(1, 6), min_size=1, max_size=12),
    most=st.integers(1, 12),
)
def test_a_split_loses_no_item(lengths: list[int], most: int) -> None:
    """Training items and targets together are every user's items, in their order."""
    sequences = [np.arange(1, 1 + length) + 10 * user for user, length in enumerate(lengths)]
    hashes = np.arange(len(sequences), dtype=np.uint64)[::-1].copy()

    split = hold_out_last_items(sequences, hashes, most)

    held_out = {
        (*history.tolist(), target)
        for part in (split.validation, split.test)
        for history, target in zip(part.histories, part.targets.tolist(), strict=True)
    }
    shortened = {
        tuple(whole.tolist())
        for whole, trained in zip(sequences, split.train, strict=True)
        if len(trained) < len(whole)
    }
    eligible = sum(length >= 3 for length in lengths)
    assert held_out == shortened
    assert len(held_out) == min(eligible, most)


@given(hashes=st.lists(st.integers(0, 2**64 - 1), unique=True, min_size=1, max_size=30))
def test_who_judges_has_not_chosen(hashes: list[int]) -> None:
    """Nobody has both parts, in this training or a later one, unless one of them had nobody."""
    sequences = [np.array([1, 2, 3 + user]) for user in range(len(hashes))]

    def parts(users: int) -> tuple[set[int], set[int]]:
        of_these = np.array(hashes[:users], np.uint64)
        split = hold_out_last_items(sequences[:users], of_these, users)
        return set(split.validation.targets.tolist()), set(split.test.targets.tolist())

    once = [parts(users) for users in range(1, len(hashes) + 1)]
    assert all(chooses and judges for chooses, judges in once)
    divided = [(chooses, judges) for chooses, judges in once if chooses != judges]
    assert not {user for chooses, _ in divided for user in chooses} & {
        user for _, judges in divided for user in judges
    }
    assert (once[-1] in divided) == (len({number % 2 for number in hashes}) == 2)


@given(st.lists(st.integers(0, 2**62 // 8), min_size=1, max_size=8), st.integers(1, 2**60))
def test_a_window_is_divided_in_proportion(held: list[int], total: int) -> None:
    """However many records there are: the parts add up, and each is its share to within one."""
    parts = proportional(np.array(held, np.int64), total).tolist()

    wanted = min(total, sum(held))
    assert sum(parts) == wanted
    assert all(
        abs(part * sum(held) - own * wanted) <= sum(held)
        for part, own in zip(parts, held, strict=True)
    )
    assert all(0 <= part <= own for part, own in zip(parts, held, strict=True))


def test_of_two_items_with_one_hash_the_more_frequent_one_is_kept() -> None:
    """Ids that collide are cheap to make; they must not keep a training from its end."""
    item_ids = ["i35as3je", "shoe", "agEf&/f"]
    assert item_hash(item_ids[0]) == item_hash(item_ids[2])

    vocabulary, index = number_items(item_ids, np.array([0, 1, 2, 2], np.int32), 1)

    assert vocabulary is not None
    assert vocabulary.item_ids == ("agEf&/f", "shoe")
    assert index.tolist() == [0, 2, 1, 1]
