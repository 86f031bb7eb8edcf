"""What the users topic says, in the processor: against lists and dicts, with crashes in between."""

from collections.abc import Sequence
from typing import Any

import hypothesis
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import strategies as st

from models.vocabulary import item_hash
from pipeline.worker.served_model import ServedModel
from pipeline.worker.wire import Recommendation
from state.row import ring_items
from tests.property.test_pipeline_recommend import (
    ITEMS,
    KNOWN,
    RING,
    STATE_TOLERANCE,
    K,
    World,
    releases,
    state_of,
)

__all__ = ["releases"]  # a fixture

USERS = [f"user-{number}" for number in range(3)]
BASE_MS = 10**12

_TIME = st.integers(0, 9)
_EVENT_REST = (
    st.sampled_from(ITEMS),
    _TIME,  # when it happened
    _TIME | st.just(-BASE_MS - 1),  # the record's own time; none at all
    st.sampled_from([None, "a", "b"]),  # event id
)
_EVENT = st.tuples(
    st.just("event"),
    st.integers(0, 1),  # partition
    st.sampled_from(USERS),
    *_EVENT_REST,
)
_COMMAND = st.tuples(
    st.just("command"),
    st.sampled_from(USERS),
    _TIME,  # forget before
    st.integers(0, 3),  # the record's own time: later records may be older
)
_READ = st.tuples(st.just("read"), st.sampled_from([1, 2, 99]))  # so many of each partition
_CRASH = st.tuples(
    st.just("crash"),
    st.booleans(),  # the next owner is deaf
    st.booleans(),  # before the last lists left
)
_ACTION = (
    _READ
    | _READ
    | _CRASH
    | st.tuples(st.sampled_from(["settle", "settle", "checkpoint", "hear", "refresh"]))
)
_FEW = st.lists(
    st.tuples(st.just("event"), st.just(0), st.just("user-0"), *_EVENT_REST), max_size=3
)
_RETURN = st.tuples(  # one user's records are read again with a command in between
    _FEW,
    st.lists(_ACTION, max_size=3),
    _FEW,
    st.sampled_from([[("read", 99)], [("read", 99), ("checkpoint",)]]),
    st.tuples(st.tuples(st.just("command"), st.just("user-0"), _TIME, st.integers(0, 3))),
    st.lists(_ACTION, max_size=2),
    st.tuples(_CRASH),
    st.lists(_ACTION, max_size=4),
).map(lambda parts: [one for part in parts for one in part])


class Reference:
    """What rows hold, as plain lists: (offset, item) by partition and user."""

    def __init__(self) -> None:
        self.rows: dict[tuple[int, str], list[tuple[int, str, str | None]]] = {}
        self.forgotten_ms: dict[tuple[int, str], int] = {}
        self.before_ms: dict[str, int] = {}
        self.settled: tuple[Any, Any] = ({}, {})

    def forget(self, at: tuple[int, str]) -> None:
        """Drop a row that may hold what is to be forgotten."""
        before_ms = self.before_ms.get(at[1], 0)
        if self.forgotten_ms.get(at, 0) < before_ms:
            self.rows.pop(at, None)
            self.forgotten_ms[at] = before_ms

    def apply(self, partition: int, records: list[Any]) -> None:
        for record in records:
            event = msgspec.json.decode(record.value)
            user = event["user_id"]
            times = [event["timestamp_ms"], *([record.timestamp] if record.timestamp >= 0 else [])]
            if min(times) < self.before_ms.get(user, 0):
                continue
            self.forget((partition, user))
            row = self.rows.setdefault((partition, user), [])
            recent = [event_id for _, _, event_id in row if event_id][-8:]
            if (row and record.offset <= row[-1][0]) or event.get("event_id") in recent:
                continue
            # By a worker that had not heard what the row's owner before had.
            forgotten_ms = self.forgotten_ms.get((partition, user), 0)
            self.forgotten_ms[partition, user] = min([forgotten_ms, *times])
            row.append((record.offset, event["item_id"], event.get("event_id")))

    def settle(self) -> None:
        kept = {at: list(row) for at, row in self.rows.items()}
        self.settled = kept, {at: self.forgotten_ms.get(at, 0) for at in kept}

    def crash(self) -> None:
        rows, forgotten_ms = self.settled
        self.rows = {at: list(row) for at, row in rows.items()}
        self.forgotten_ms = dict(forgotten_ms)


class Topic:
    """The recommendations as a consumer has them that keeps to the rule of docs/topics.md.

    Outputs leave a while after they were computed, or, with `transactional`, with their rows.
    """

    def __init__(self, *, transactional: bool) -> None:
        self.kept: dict[tuple[int, str], Recommendation] = {}
        self._transactional = transactional
        self._waiting: list[tuple[int, bytes, bytes | None]] = []

    def compute(self, partition: int, outputs: list[tuple[bytes, bytes | None]]) -> None:
        if not self._transactional:
            self.send()
        self._waiting += [(partition, key, value) for key, value in outputs]

    def checkpoint(self, partition: int, rows: Sequence[tuple[bytes, bytes | None]]) -> None:
        """Rows get into the changelog; null values do with them, and behind all lists of before."""
        deleted = [(partition, key, None) for key, row in rows if row is None]
        if deleted or self._transactional:
            self.send()
        self._take(deleted)

    def send(self) -> None:
        self._take(self._waiting)
        self._waiting = []

    def crash(self, *, before_it_sent: bool) -> None:
        if not before_it_sent and not self._transactional:
            self.send()
        self._waiting = []

    def _take(self, records: Sequence[tuple[int, bytes, bytes | None]]) -> None:
        for partition, key, value in records:
            place = partition, key.decode()
            if value is None:
                self.kept.pop(place, None)
                continue
            made = msgspec.json.decode(value, type=Recommendation)
            known = self.kept.get(place)
            if known is None or made.event.offset >= known.event.offset:
                self.kept[place] = made


@pytest.mark.parametrize("transactional", [False, True])
@hypothesis.settings(max_examples=150, deadline=None)
@hypothesis.given(story=st.lists(_EVENT | _EVENT | _COMMAND | _ACTION, max_size=40) | _RETURN)
def test_rows_and_lists_hold_nothing_that_is_to_be_forgotten(
    releases: list[ServedModel], transactional: bool, story: list[tuple[Any, ...]]
) -> None:
    """Whatever comes when, and is read again: rows, states and lists in force are of the rest."""
    model = releases[0]
    world, reference = World(model, transactional=transactional), Reference()
    topic = Topic(transactional=transactional)
    at, committed = {0: 0, 1: 0}, {0: 0, 1: 0}
    told: dict[str, int] = {}
    heard: dict[str, int] = {}

    def hear() -> None:
        for record in unheard:
            world.hearing.hear(record)
        heard.update(told)

    def read(most: int) -> None:
        reference.before_ms = dict(heard)
        for partition in (0, 1):
            end = min(at[partition] + most, len(world.log[partition]))
            for result in world.process(partition, at[partition], end):
                topic.compute(partition, result.outputs)
            reference.apply(partition, world.log[partition][at[partition] : end])
            at[partition] = end

    def refresh() -> None:
        reference.before_ms = dict(heard)
        world.processor.refresh((0, 1))
        for place in list(reference.rows):
            reference.forget(place)

    def checkpoint() -> None:
        for partition in (0, 1):
            topic.checkpoint(partition, world.settle_one(partition))
        reference.settle()

    unheard: list[Any] = []
    rest = [("hear",), ("read", 99), ("refresh",), ("settle",)]
    for kind, *told_of in [*story, *rest]:
        if kind == "event":
            partition, user, item, timestamp, record, event_id = told_of
            world.produce(
                partition,
                user,
                item,
                event_id,
                timestamp_ms=BASE_MS + timestamp,
                record_ms=BASE_MS + record,
            )
        elif kind == "command":
            user, before, record = told_of
            world.command(user, record, forget_before_ms=BASE_MS + before)
            told[user] = max(told.get(user, 0), BASE_MS + before)
            heard[user] = max(heard.get(user, 0), BASE_MS + before)
        elif kind == "read":
            read(told_of[0])
        elif kind == "refresh":
            refresh()
        elif kind == "checkpoint":  # up to where lists and offsets follow
            checkpoint()
        elif kind == "settle":
            checkpoint()
            topic.send()
            committed = dict(at)
        elif kind == "hear":
            hear()
            unheard = []
        else:  # a crash; the next owner may not have heard yet what this one had
            is_deaf = told_of[0]
            topic.crash(before_it_sent=told_of[1])
            world.start(is_deaf=is_deaf)
            unheard = [*world.users] if is_deaf else []
            heard = {} if is_deaf else dict(told)
            reference.crash()
            at = dict(committed)

    rows = world.rows()
    expected = {place: row for place, row in reference.rows.items() if row}
    assert {(p, key.decode()) for p, key in rows} == set(expected) == set(topic.kept)
    for (partition, key), (head, hidden) in rows.items():
        user = key.decode()
        row = expected[partition, user]
        items = [item for _, item, _ in row]
        ring, lengths = ring_items(np.array([head]))
        assert ring[0, : lengths[0]].tolist() == [item_hash(item) for item in items[-RING:]]
        assert (head["event_count"], head["offset"]) == (len(row), row[-1][0])
        assert head["forgotten_before_ms"] == told.get(user, 0)
        events = [msgspec.json.decode(world.log[partition][offset].value) for offset, _, _ in row]
        assert min(event["timestamp_ms"] for event in events) >= told.get(user, 0)
        truth = state_of(model, items[head["started_at"] :])
        np.testing.assert_allclose(hidden, truth, atol=STATE_TOLERANCE)
        made = topic.kept[partition, user]
        assert (made.history_length, made.event.offset) == (len(row), row[-1][0])


@pytest.mark.parametrize("has_model", [False, True])
@pytest.mark.parametrize("exclude_seen", [False, True])
@hypothesis.settings(deadline=None)
@hypothesis.given(
    batches=st.lists(
        st.tuples(
            st.lists(st.tuples(st.sampled_from(USERS), st.sampled_from(KNOWN)), max_size=6),
            st.none() | st.tuples(st.sampled_from(USERS), st.sets(st.sampled_from(ITEMS))),
        ),
        max_size=6,
    )
)
def test_no_list_holds_what_its_user_has_blocked(
    releases: list[ServedModel],
    has_model: bool,
    exclude_seen: bool,
    batches: list[tuple[list[tuple[str, str]], tuple[str, set[str]] | None]],
) -> None:
    """A list is the best of what is neither blocked nor, where so set, seen; others' stay whole."""
    model = releases[0] if has_model else None
    world = World(model, exclude_seen=exclude_seen)
    blocked: dict[str, set[str]] = {}
    history: dict[str, list[str]] = {}
    counts: dict[str, int] = {}
    for nth, (events, command) in enumerate(batches):
        if command is not None:
            world.command(command[0], nth, blocked_items=sorted(command[1]))
            blocked[command[0]] = command[1]
        at = len(world.log[0])
        for user, item in events:
            world.produce(0, user, item)
            history.setdefault(user, []).append(item)
            counts[item] = counts.get(item, 0) + 1
        for result in world.process(0, at, len(world.log[0])):
            for key, value in result.outputs:
                user = key.decode()
                out = set(blocked.get(user, ()))
                if exclude_seen:
                    out |= set(history[user][-RING:])
                made = msgspec.json.decode(value or b"", type=Recommendation)
                listed = [item.item_id for item in made.items]
                if model is None:
                    scores = {item: float(count) for item, count in counts.items()}
                else:
                    scores = _scores(model, history[user])
                left = sorted((scores[item] for item in scores.keys() - out), reverse=True)[:K]
                assert not out.intersection(listed)
                np.testing.assert_allclose([scores[item] for item in listed], left, atol=1e-5)


def _scores(model: ServedModel, items: list[str]) -> dict[str, float]:
    """Every item's score after one scan of a history of known items."""
    known = [model.index_of[item] for item in items]
    _, outputs = model.serving.advance(
        model.serving.init_state(1), torch.tensor(known), torch.tensor([len(known)])
    )
    scores = model.serving.scores(outputs[-1:])[0].tolist()
    return {item: scores[index] for item, index in model.index_of.items()}


def test_of_several_commands_the_latest_by_its_time_rules(releases: list[ServedModel]) -> None:
    """They come on several partitions; what was forgotten stays so, whatever comes later."""
    world = World(releases[0])
    world.command("user", 7, blocked_items=["item-1"])
    world.command("user", 9, blocked_items=["item-2"])
    world.command("user", 8, forget_before_ms=BASE_MS, blocked_items=["item-3"])
    world.hearing.take_up()

    blocked = world.hearing.blocked({0: [b"other", b"user"]})

    assert {user: items.tolist() for user, items in blocked.items()} == {1: [item_hash("item-2")]}
    assert world.hearing.forget_before_ms == {b"user": BASE_MS}
    world.command("user", 10)
    world.hearing.take_up()
    assert world.hearing.blocked({0: [b"user"]}) == {}
    assert world.hearing.forget_before_ms == {b"user": BASE_MS}


def test_a_row_that_is_away_is_erased_too(releases: list[ServedModel]) -> None:
    """Also where its user never comes back, and another owner has the partition meanwhile."""
    world = World(releases[0])
    for number in range(10):  # three rows are held at once
        world.produce(0, f"user-{number}", "item-1")
    for number in range(10):
        world.process(0, number, number + 1)
        world.settle()
    for number in range(5):
        world.command(f"user-{number}", 1, forget_before_ms=BASE_MS)

    assert world.processor.refresh(()) == {}
    assert world.processor.refresh((0, 1)) == {0: 5}
    assert world.processor.refresh((0, 1)) == {}
    world.settle()
    assert {key for _, key in world.rows()} == {b"user-%d" % number for number in range(5, 10)}

    world.command("user-5", 1, forget_before_ms=BASE_MS)
    world.processor.refresh((0,))
    world.processor.forget(0)  # before it was settled: the next owner may not have heard
    assert len(world.rows()) == 5
    assert world.processor.refresh((0,)) == {0: 1}
    world.settle()
    assert len(world.rows()) == 4
    assert world.metrics.users_forgotten._value.get() == 7


def test_a_list_that_outlived_its_state_is_taken_back(releases: list[ServedModel]) -> None:
    """It left before a crash; the forgotten event behind it is read again, and nothing is left."""
    world = World(releases[0])
    for user in USERS:
        world.produce(0, user, "item-1")
    world.process(0, 0, 3)
    world.start()
    world.command("user-1", 1, forget_before_ms=BASE_MS)
    world.command("user-2", 1, forget_before_ms=BASE_MS)
    world.produce(0, "user-2", "item-2", timestamp_ms=BASE_MS, record_ms=BASE_MS)

    [result] = world.process(0, 0, 4)

    assert {key: value is None for key, value in result.outputs} == {
        b"user-0": False,
        b"user-1": True,
        b"user-2": False,
    }
    world.produce(0, "user-2", "item-3")  # a late one of before, for all a worker knows
    [result] = world.process(0, 4, 5)
    (null_key, null), (key, value) = result.outputs
    assert (null_key, null, key) == (b"user-2", None, b"user-2")
    assert msgspec.json.decode(value or b"", type=Recommendation).history_length == 1


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("refreshed", [False, True])
@pytest.mark.parametrize("at_once", [False, True])
def test_a_list_of_earlier_events_follows_a_null_value(
    releases: list[ServedModel], transactional: bool, refreshed: bool, at_once: bool
) -> None:
    """A consumer would keep the one of a late event, which was to be forgotten after a crash."""
    world, topic = World(releases[0], transactional=transactional), Topic(transactional=False)
    world.produce(0, "user-0", "item-1", timestamp_ms=BASE_MS + 5, record_ms=BASE_MS + 5)
    world.produce(0, "user-0", "item-2", timestamp_ms=BASE_MS, record_ms=BASE_MS + 6)

    def read(start: int, end: int) -> None:
        for result in world.process(0, start, end):
            topic.compute(0, result.outputs)
        topic.send()

    read(0, 2)
    world.settle()
    world.start()
    world.command("user-0", 1, forget_before_ms=BASE_MS + 3)
    if refreshed:
        world.processor.refresh((0, 1))
    for start, end in [(0, 2)] if at_once else [(0, 1), (1, 2)]:
        read(start, end)

    assert topic.kept[0, "user-0"].history_length == 1
