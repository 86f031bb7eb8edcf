"""Laws of what the trainer makes of the topic's events."""

import dataclasses
from collections import Counter

import msgspec
import numpy as np
from hypothesis import example, given
from hypothesis import strategies as st
from xxhash import xxh3_64_intdigest

from models.vocabulary import item_hash
from pipeline.errors import NotEnoughEvents
from pipeline.settings import Settings
from pipeline.training.holdout import hold_out_last_items
from pipeline.training.ranges import proportional
from pipeline.training.sequences import (
    gather_sequences,
    number_items,
    repeated_events,
)
from state.row import EVENT_IDS


@given(st.lists(st.lists(st.integers(0, 12), max_size=30), min_size=1, max_size=4))
@example([[*range(1, EVENT_IDS + 1), 1]])
@example([[*range(1, EVENT_IDS + 2), 1]])
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


@dataclasses.dataclass(frozen=True, kw_only=True)
class EventRecord:
    """A record of the interactions topic."""

    topic: str = "interactions"
    partition: int
    offset: int
    timestamp: int
    key: bytes | None = None
    value: bytes
    headers: tuple[()] = ()


TIMES_MS = st.integers(0, 8)
EVENTS = st.tuples(
    st.integers(0, 1),  # partition
    st.sampled_from(["anna", "bert"]),
    st.sampled_from("abc"),
    TIMES_MS,  # when it happened
    TIMES_MS | st.just(-1),  # when it was recorded
    st.integers(0, 3),  # its id; 0: none
)


@given(
    events=st.lists(EVENTS, max_size=40),
    forget_before_ms=st.dictionaries(st.sampled_from(["anna", "bert", "carl"]), TIMES_MS),
)
def test_what_is_forgotten_never_happened(
    events: list[tuple[int, str, str, int, int, int]], forget_before_ms: dict[str, int]
) -> None:
    """Of both times the earlier counts; what is left trains as if nothing else had been sent."""
    expected: dict[tuple[int, str], list[str]] = {}
    applied: dict[tuple[int, str], list[int]] = {}
    counts: Counter[str] = Counter()
    for partition, user, item, time_ms, recorded_ms, event_id in events:
        times = [time_ms] if recorded_ms < 0 else [time_ms, recorded_ms]
        ids = applied.setdefault((partition, user), [])
        if min(times) < forget_before_ms.get(user, 0):
            counts["forgotten"] += 1
        elif event_id and event_id in ids[-EVENT_IDS:]:
            counts["duplicate"] += 1
        else:
            counts["applied"] += 1
            ids += [event_id] if event_id else []
            expected.setdefault((partition, user), []).append(item)
    records = [
        EventRecord(
            partition=partition,
            offset=offset,
            timestamp=recorded_ms,
            value=msgspec.json.encode(
                {"user_id": user, "item_id": item, "timestamp_ms": time_ms, "event_id": event_id}
                if event_id
                else {"user_id": user, "item_id": item, "timestamp_ms": time_ms}
            ),
        )
        for offset, (partition, user, item, time_ms, recorded_ms, event_id) in enumerate(events)
    ]
    settings = Settings(fields=dataclasses.replace(Settings().fields, timestamp_unit="ms"))
    ranges = dict.fromkeys((0, 1), (0, len(events)))
    by_key = {user.encode(): before_ms for user, before_ms in forget_before_ms.items()}

    try:
        read = gather_sequences(settings, ranges, records, by_key)
    except NotEnoughEvents:
        assert not expected
        return

    names = read.vocabulary.item_ids
    found = [[names[index - 1] for index in sequence] for sequence in read.sequences]
    assert sorted(found) == sorted(expected.values())
    for count in ("applied", "duplicate", "forgotten"):
        assert getattr(read.counts, count) == counts[count]


@given(
    clicks=st.lists(
        st.tuples(
            st.integers(0, 1), st.sampled_from(["anna", "bert", "carl"]), st.sampled_from("abcd")
        ),
        max_size=20,
    ),
    least=st.integers(1, 4),
)
def test_a_rare_item_was_never_clicked(clicks: list[tuple[int, str, str]], least: int) -> None:
    """Who clicked on nothing else is no user, and all the others keep the hashes of their keys."""
    counts = Counter(item for _, _, item in clicks)
    expected: dict[tuple[int, str], list[str]] = {}
    for partition, user, item in clicks:
        if counts[item] >= least:
            expected.setdefault((partition, user), []).append(item)
    records = [
        EventRecord(
            partition=partition,
            offset=offset,
            timestamp=0,
            value=msgspec.json.encode({"user_id": user, "item_id": item}),
        )
        for offset, (partition, user, item) in enumerate(clicks)
    ]
    trainer = dataclasses.replace(Settings().trainer, min_item_count=least)
    ranges = dict.fromkeys((0, 1), (0, len(clicks)))

    try:
        read = gather_sequences(Settings(trainer=trainer), ranges, records, {})
    except NotEnoughEvents:
        assert not expected
        return

    names = read.vocabulary.item_ids
    assert sorted(names) == sorted(item for item, count in counts.items() if count >= least)
    assert sorted(
        (user_hash, [names[index - 1] for index in sequence])
        for user_hash, sequence in zip(read.user_hashes.tolist(), read.sequences, strict=True)
    ) == sorted((xxh3_64_intdigest(user.encode()), items) for (_, user), items in expected.items())
    assert read.counts.applied == sum(map(len, expected.values()))
    assert read.counts.applied + read.counts.rare == len(clicks)


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
    """Training items and targets together are every user's items; the lowest hashes are taken."""
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
    eligible = [user for user, length in enumerate(lengths) if length >= 3]
    assert held_out == shortened
    assert {items[0] // 10 for items in held_out} == set(eligible[-most:])


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
