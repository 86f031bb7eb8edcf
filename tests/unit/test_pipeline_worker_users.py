"""Commands about users: a flood, beside micro-batches that want the same thread; and repeats."""

import time
import tracemalloc
from collections import Counter
from collections.abc import Mapping
from dataclasses import replace
from itertools import count
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
import torch
from kafka.partitioner.default import murmur2

from models.vocabulary import Vocabulary, item_hash
from pipeline.worker.hot_rows import HotRows
from pipeline.worker.ranking import _blocked_of_each
from pipeline.worker.users import ERASE_AT_ONCE, ERASE_BUDGET_S, Users
from state.memory import MemoryStore
from state.row import RowLayout
from tests.verify_world import ListedRecord

LOOK_S = ERASE_BUDGET_S / 5


class SlowRows:
    """Rows of which every look for some takes its time; none is erased but in partition 3."""

    def __init__(self) -> None:
        self.looks: Counter[int] = Counter()

    def erase_users(
        self, partition: int, before_ms: Mapping[bytes, int], absent: None
    ) -> tuple[int, int]:
        self.looks[partition] += 1
        time.sleep(LOOK_S)
        return (len(before_ms),) * 2 if partition == 3 else (0, 0)


@pytest.mark.parametrize("is_new", [False, True])
def test_a_flood_of_commands_is_worked_off_bit_by_bit(is_new: bool) -> None:
    """Of each second a fraction, however many partitions there are, and all of them in the end.

    All partitions come on alike, be it at a start or while the worker runs.
    """
    users, rows, owned = Users(), SlowRows(), range(12)
    if is_new:
        users.erase_rows(rows, owned)  # type: ignore[arg-type]
    tell(users, *[b"user-%d" % number for number in range(2 * ERASE_AT_ONCE)])

    erased, most = 0, 0
    for _ in range(2 * len(owned)):
        before = rows.looks.total()
        erased += users.erase_rows(rows, owned).get(3, 0)  # type: ignore[arg-type]
        most = max(most, rows.looks.total() - before)
        assert max(rows.looks.values()) <= min(rows.looks[number] for number in owned) + 1

    assert 0 < most <= ERASE_BUDGET_S / LOOK_S + 1
    assert rows.looks == dict.fromkeys(owned, 2)  # each part once, in every partition
    assert erased == 2 * ERASE_AT_ONCE
    assert users.erase_rows(rows, owned) == {}  # type: ignore[arg-type]
    users.leave(5)
    users.erase_rows(rows, owned)  # type: ignore[arg-type]
    assert rows.looks == dict.fromkeys(owned, 2) | {5: 4}  # it may have other rows by now


LAYOUT = RowLayout(ring=2, recommended=1, blocks=1, channels=1)
PARTITIONS = 5  # by a power of two, a hash's sign would not matter


def tell(users: Users, *keys: bytes) -> None:
    """Let commands hold that forget these users."""
    value = b'{"forget_before_ms":1735689600000}'
    for key in keys:
        users.hear(SimpleNamespace(key=key, value=value, timestamp=1))  # type: ignore[arg-type]
    users.take_up()


def rows_of(users_by_partition: Mapping[int, list[bytes]]) -> HotRows:
    """Rows of three events each."""
    store = MemoryStore()
    heads = LAYOUT.new_heads(1)
    heads["event_count"] = 3
    [row] = LAYOUT.encode(heads, np.zeros((1, 1, 1), np.complex64))
    for partition in range(PARTITIONS):
        store.open(partition)
        store.write(partition, [(key, row) for key in users_by_partition.get(partition, [])], 1)
    return HotRows(LAYOUT, 100, torch.device("cpu"), store, lambda *damaged: None)


def nulls(hot: HotRows) -> dict[int, list[bytes]]:
    """The keys of null values that the next checkpoint sends, by partition."""
    sent = {}
    for partition in range(PARTITIONS):
        rows, token = hot.snapshot(partition)
        hot.settled(partition, token)
        if keys := sorted(key for key, row in rows if row is None):
            sent[partition] = keys
    return sent


def placed(key: bytes) -> int:
    return (murmur2(key) & 0x7FFFFFFF) % PARTITIONS


def test_what_is_erased_bit_by_bit_is_counted_together(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where there is time for several parts, of users in the first and the last of them."""
    monkeypatch.setattr("pipeline.worker.users.ERASE_BUDGET_S", 60)
    everyone = [b"user-%d" % number for number in range(2 * ERASE_AT_ONCE + 1)]
    hot, users = rows_of({3: everyone[:: 2 * ERASE_AT_ONCE]}), Users()
    tell(users, *everyone)

    assert users.erase_rows(hot, range(PARTITIONS)) == {3: 2}


def test_what_a_start_reads_on_every_partition_is_looked_for_once() -> None:
    """However long it takes until there are partitions to look into."""
    users, rows = Users(), SlowRows()
    for _ in range(3):
        tell(users, *[b"user-%d" % number for number in range(ERASE_AT_ONCE)])
        users.erase_rows(rows, ())  # type: ignore[arg-type]

    for _ in range(3):
        users.erase_rows(rows, [0])  # type: ignore[arg-type]

    assert rows.looks == {0: 1}


def test_of_two_commands_of_the_same_time_the_later_one_rules() -> None:
    """As on one partition, where both came within a millisecond."""
    users = Users()
    record = ListedRecord("users", 0, 0, 9, b"user", b'{"blocked_items":["a"]}')
    users.hear(record)
    users.hear(replace(record, value=b'{"blocked_items":["b"]}'))
    users.take_up()

    assert users.blocked({0: [b"user"]})[0].tolist() == [item_hash("b")]


def test_a_command_that_comes_while_it_runs_sends_a_null_value_without_a_row() -> None:
    """On the user's partition, each time: a list of a worker that was cut off may have come."""
    everyone = [b"user-%d" % number for number in range(20)]
    hot = rows_of({p: [key for key in everyone if placed(key) == p] for p in range(PARTITIONS)})
    users, owned = Users(PARTITIONS), range(PARTITIONS)
    tell(users, b"known long ago")
    assert users.erase_rows(hot, owned) == {}
    assert nulls(hot) == {}

    tell(users, b"stranger", b"user-3", b"known long ago")
    erased = users.erase_rows(hot, owned)

    assert sum(erased.values()) == 1
    expected: dict[int, list[bytes]] = {}
    for key in (b"known long ago", b"stranger", b"user-3"):
        expected.setdefault(placed(key), []).append(key)
    assert nulls(hot) == expected
    assert set(erased) == set(expected)
    assert users.erase_rows(hot, owned) == {}

    tell(users, *4 * [b"user-3"])  # again, on each partition of the users topic
    assert users.erase_rows(hot, owned) == {placed(b"user-3"): 0}
    assert nulls(hot) == {placed(b"user-3"): [b"user-3"]}


def test_no_null_value_goes_to_a_partition_that_may_be_another_users() -> None:
    """Producers choose as they like: where rows show it, only a row tells a user's partition."""
    odd = next(key for key in (b"user-%d" % n for n in range(99)) if placed(key) != 2)
    stranger = next(key for key in (b"stranger-%d" % n for n in range(99)) if placed(key) == 2)
    hot, users = rows_of({2: [odd]}), Users(PARTITIONS)
    users.erase_rows(hot, [2])

    tell(users, stranger)
    assert users.erase_rows(hot, [2]) == {}
    tell(users, odd)
    assert users.erase_rows(hot, [2]) == {2: 1}
    assert nulls(hot) == {2: [odd]}
    tell(users, odd)  # its row is empty, but still known
    assert users.erase_rows(hot, [2]) == {2: 0}
    assert nulls(hot) == {2: [odd]}


@pytest.mark.parametrize("is_new", [True, False])
def test_the_newest_command_does_not_wait_for_those_of_long_ago(
    is_new: bool, monkeypatch: pytest.MonkeyPatch
) -> None:
    """After a start all of them are looked at; whoever was told of last comes first.

    By a clock that has time for one look into each of four partitions.
    """
    ticks = count(0, ERASE_BUDGET_S / 5)
    monkeypatch.setattr("pipeline.worker.users.monotonic", lambda: next(ticks))
    hot = rows_of({3: [b"user"]})
    users = Users()
    tell(users, *[b"gone-%d" % number for number in range(20 * ERASE_AT_ONCE)])
    if is_new:
        users.erase_rows(SlowRows(), range(PARTITIONS))  # type: ignore[arg-type]
    tell(users, b"user")

    assert users.erase_rows(hot, range(PARTITIONS)) == {3: 1}


def test_a_null_value_leaves_no_key_behind() -> None:
    """Its time alone is kept, by which an older record on another partition is void."""
    users, number, key_bytes = Users(), 1000, 1000
    record = ListedRecord("users", 0, 0, 9, None, None)
    tracemalloc.start()
    for one in range(number):
        users.hear(replace(record, key=b"%0*d" % (key_bytes, one)))
    users.take_up()
    kept_bytes, _ = tracemalloc.get_traced_memory()
    tracemalloc.stop()
    block = b'{"blocked_items":["a"]}'
    keys = [b"%0*d" % (key_bytes, one) for one in range(number + 1)]
    for key in keys:
        users.hear(replace(record, key=key, value=block, timestamp=8))
    users.take_up()

    assert kept_bytes < number * key_bytes / 2
    assert users.blocked({0: keys}).keys() == {number}  # of whom there was no null value


def test_each_list_leaves_out_what_its_own_user_has_blocked() -> None:
    """As indices of the release, which may not know all of them; 0 for none."""
    ids = [f"item-{number}" for number in range(50)]
    model: Any = SimpleNamespace(release=SimpleNamespace(vocabulary=Vocabulary(ids, [1] * 50)))
    some = np.array([item_hash(item) for item in [*ids[:4], "unknown"]], np.uint64)

    assert _blocked_of_each(model, np.array([7, 5, 7]), {7: some[:2], 9: some}).tolist() == [
        [1, 2, 0, 0],
        [0, 0, 0, 0],
        [1, 2, 0, 0],
    ]
