"""Rows in use, held to a dict through eviction, snapshots, settling and loss of partitions."""

from typing import Any

import numpy as np
import pytest
import torch
from hypothesis import settings as hypothesis_settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, invariant, rule

from pipeline.worker.hot_rows import HotRows, SnapshotToken
from state.memory import MemoryStore
from state.row import RowLayout

LAYOUT = RowLayout(ring=3, recommended=2, blocks=1, channels=2)
PARTITIONS = st.integers(0, 1)
KEYS = st.lists(
    st.integers(0, 9).map(lambda i: b"user-%d" % i), min_size=1, max_size=4, unique=True
)


def fail_on_damage(partition: int, key: bytes) -> None:
    pytest.fail(f"damaged row {key!r} in partition {partition}")


class HotRowsMachine(RuleBasedStateMachine):
    """Moves rows; after any of it every row reads as the oracle says."""

    def __init__(self) -> None:
        super().__init__()
        self.store = MemoryStore()
        for partition in (0, 1):
            self.store.open(partition)
        self.hot = HotRows(LAYOUT, 5, torch.device("cpu"), self.store, fail_on_damage)
        self.truth: dict[tuple[int, bytes], int] = {}  # what was moved last
        self.durable: dict[tuple[int, bytes], int] = {}  # what the store has
        self.open: list[tuple[int, Any, SnapshotToken, dict[tuple[int, bytes], int]]] = []
        self.value = 0

    @rule(partition=PARTITIONS, keys=KEYS)
    def move(self, partition: int, keys: list[bytes]) -> None:
        """A micro-batch moves some rows, head and hidden state."""
        self.hot.tick()
        slots = self.hot.find(partition, keys)
        for key, slot in zip(keys, slots.tolist(), strict=True):
            self.value += 1
            self.hot.heads["event_count"][slot] = self.value
            self.hot.hidden[slot] = self.value
            self.truth[partition, key] = self.value
        self.hot.mark_moved(partition, slots)

    @rule(partition=PARTITIONS, keys=KEYS)
    def read(self, partition: int, keys: list[bytes]) -> None:
        """Whatever was dropped and loaded again, a row is the last one that was moved."""
        self.hot.tick()
        slots = self.hot.find(partition, keys)
        expected = [self.truth.get((partition, key), 0) for key in keys]
        assert self.hot.heads["event_count"][slots].tolist() == expected
        assert self.hot.hidden[torch.from_numpy(slots)].real[:, 0, 0].tolist() == expected

    @rule(partition=PARTITIONS)
    def snapshot(self, partition: int) -> None:
        """A checkpoint begins: it holds exactly what moved since the last."""
        rows, token = self.hot.snapshot(partition)
        values = {(partition, key): self.truth[partition, key] for key, _ in rows}
        decoded = LAYOUT.decode([row for _, row in rows])
        assert decoded.heads["event_count"].tolist() == list(values.values())
        assert self.hot.moved_rows(partition) == 0
        self.open.append((partition, rows, token, values))

    @rule()
    def settle(self) -> None:
        """The oldest checkpoint is in the store."""
        if self.open:
            partition, rows, token, values = self.open.pop(0)
            self.store.write(partition, rows, None)
            self.hot.settled(partition, token)
            self.durable |= values

    @rule(partition=PARTITIONS)
    def lose(self, partition: int) -> None:
        """The partition goes and comes back: only what the store has is left of it."""
        self.hot.forget(partition)
        lost = [token for number, _, token, _ in self.open if number == partition]
        self.open = [entry for entry in self.open if entry[0] != partition]
        self.truth = {at: value for at, value in self.truth.items() if at[0] != partition}
        self.truth |= {at: value for at, value in self.durable.items() if at[0] == partition}
        for token in lost:
            self.hot.settled(partition, token)  # comes too late and must not count

    @invariant()
    def nothing_unsettled_was_dropped(self) -> None:
        """A row the store lacks is still here."""
        for (partition, key), value in self.truth.items():
            if self.durable.get((partition, key), 0) != value:
                assert key in self.hot._slots[partition]


TestHotRows = HotRowsMachine.TestCase
TestHotRows.settings = hypothesis_settings(max_examples=40, stateful_step_count=40, deadline=None)


def test_a_change_of_layout_keeps_rings_and_drops_hidden_states() -> None:
    """After a release of another shape the remembered items are there, in the right slots."""
    store = MemoryStore()
    store.open(0)
    hot = HotRows(LAYOUT, 4, torch.device("cpu"), store, fail_on_damage)
    hot.tick()
    slot = hot.find(0, [b"user"])
    hot.heads["event_count"][slot] = 5
    hot.heads["ring"][slot] = np.array([4, 5, 3], np.uint64)  # events 3, 4, 2 of 0..4
    hot.heads["weights_id"][slot] = 7
    hot.hidden[torch.from_numpy(slot)] = 1
    hot.mark_moved(0, slot)

    hot.relayout(RowLayout(ring=2, recommended=1, blocks=2, channels=3))
    [(_, row)], _ = hot.snapshot(0)

    decoded = hot.layout.decode([row])
    assert not decoded.damaged[0]
    assert decoded.heads["ring"][0].tolist() == [5, 4]
    assert decoded.heads["weights_id"][0] == 0
    assert not decoded.hidden.any()


def test_the_space_that_a_burst_took_stays_and_grows_no_further() -> None:
    """It doubles for rows that no checkpoint has yet; afterwards rows make room for each other."""
    store = MemoryStore()
    store.open(0)
    hot = HotRows(LAYOUT, 4, torch.device("cpu"), store, fail_on_damage)

    def move(user: int) -> None:
        hot.tick()
        hot.mark_moved(0, hot.find(0, [b"%d" % user]))

    def checkpoint() -> None:
        rows, token = hot.snapshot(0)
        store.write(0, rows, None)
        hot.settled(0, token)

    for user in range(5):
        move(user)
    checkpoint()
    space = len(hot.heads)
    for user in range(5, 30):
        move(user)
        checkpoint()

    assert space == 8
    assert (len(hot.heads), len(hot.hidden)) == (8, 9)
    assert 4 < len(hot) <= 8
