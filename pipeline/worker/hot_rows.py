"""Rows in use: heads on the host, hidden states as one tensor on the device.

A row enters from the store when its user shows up and stays until the space is needed. What moved
is written through by checkpoints: until a snapshot is settled (changelog and store have it) a row
is never dropped, since the store's copy is older. One thread uses this.
"""

from collections.abc import Callable, Collection, Mapping, Sequence
from dataclasses import dataclass
from itertools import islice

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.transfers import to_device, to_host
from state.errors import StateFormatUnknown
from state.row import Heads, RowLayout
from state.store import StateStore

EVICTED_SHARE = 0.1  # of the capacity at once: eviction looks at every row, so it is done rarely
SOME = 100

Slots = npt.NDArray[np.int64]


@dataclass(frozen=True, slots=True)
class SnapshotToken:
    """Which slots a snapshot holds, and of which life of the partition."""

    slots: Slots
    life: int


class HotRows:
    """Slots for rows, found by partition and user key.

    Args:
        layout: Sizes of the rows.
        capacity: Rows to hold. Where more than that are in one micro-batch, or moved and not
            settled, the space at least doubles, and stays: later rows are held in it too.
        device: Where hidden states live.
        store: Where missing rows are read from.
        on_damaged: Is told (partition, user key) of a row whose bytes are damaged; must not return.

    Attributes:
        heads: (capacity,) structured array; entry i belongs to slot i.
        hidden: complex64 (capacity + 1, blocks, channels) on the device; the last belongs to
            nobody. Written in place, and another tensor after `find` or `relayout` only.
        hits: Rows that were here when asked for.
        misses: Rows that had to be read.
    """

    def __init__(
        self,
        layout: RowLayout,
        capacity: int,
        device: torch.device,
        store: StateStore,
        on_damaged: Callable[[int, bytes], None],
    ) -> None:
        self.layout = layout
        self.heads: Heads = layout.new_heads(capacity)
        self.hidden = _zero_states(layout, capacity + 1, device)
        self.hits = self.misses = 0
        self._store = store
        self._on_damaged = on_damaged
        self._slots: dict[int, dict[bytes, int]] = {}  # partition -> key -> slot
        self._keys: list[bytes] = [b""] * capacity
        self._partition = np.full(capacity, -1, np.int64)
        self._used_at = np.zeros(capacity, np.int64)
        self._moved = np.zeros(capacity, np.bool_)
        self._unsettled = np.zeros(capacity, np.int64)
        self._is_listed = np.zeros(capacity, np.bool_)  # a list of what was erased is in force
        self._moved_rows: dict[int, int] = {}
        self._lives: dict[int, int] = {}
        self._free: list[int] = list(range(capacity - 1, -1, -1))
        self._clock = 0

    def __len__(self) -> int:
        return len(self._keys) - len(self._free)

    def tick(self) -> None:
        """Begin a micro-batch: rows asked for from here on are the most recently used."""
        self._clock += 1

    def find(self, partition: int, keys: Sequence[bytes]) -> Slots:
        """Return the slot of each user, reading what is missing from the store.

        Args:
            partition: Of the users.
            keys: Distinct user keys.
        """
        known = self._slots.setdefault(partition, {})
        slots = np.array([known.get(key, -1) for key in keys], np.int64)
        self._used_at[slots[slots >= 0]] = self._clock  # before anything is evicted
        missing = np.flatnonzero(slots < 0)
        self.hits += len(keys) - len(missing)
        if len(missing):
            self.misses += len(missing)
            slots[missing] = self._load(partition, [keys[i] for i in missing.tolist()])
        return slots

    def index(self, slots: Slots) -> Tensor:
        """Return slots as an index into `hidden`, on its device."""
        return to_device(torch.from_numpy(slots), self.hidden.device)

    def mark_moved(self, partition: int, slots: Slots) -> None:
        """Note that these rows differ from what the last snapshot holds."""
        fresh = int(np.count_nonzero(~self._moved[slots]))
        self._moved[slots] = True
        self._moved_rows[partition] = self._moved_rows.get(partition, 0) + fresh

    def moved_rows(self, partition: int) -> int:
        """Return how many rows of the partition no snapshot has taken yet."""
        return self._moved_rows.get(partition, 0)

    def erase(self, slots: Slots, before_ms: Slots) -> None:
        """Make these rows those of users without history, who are forgotten up to a time.

        Where they had events, a list of these is in force: see `take_back`.

        Args:
            slots: int64 (n,).
            before_ms: int64 (n,), the time of each.
        """
        self._is_listed[slots] |= self.heads["event_count"][slots] > 0
        self.heads[slots] = self.layout.new_heads(len(slots))
        self.heads["forgotten_before_ms"][slots] = before_ms
        self.hidden.index_fill_(0, self.index(slots), 0)

    def take_back(self, slots: Slots) -> npt.NDArray[np.bool_]:
        """Tell of which rows an erased list is in force, once; the caller sends a null value.

        A consumer keeps the list of the highest offset: where events are read again, that of an
        erased row may be higher than those of the row that follows. A row that stays empty needs no
        such call: it leaves a snapshot with a null value.
        """
        listed: npt.NDArray[np.bool_] = self._is_listed[slots]
        self._is_listed[slots] = False
        return listed

    def some_users(self, partition: int) -> list[bytes]:
        """Return the keys of a few users who have a row."""
        return [key for key, _ in islice(self._store.scan(partition), SOME)]

    def erase_users(
        self,
        partition: int,
        before_ms: Mapping[bytes, int],
        absent: Collection[bytes] | None = None,
    ) -> tuple[int, int]:
        """Erase the rows that may hold what is to be forgotten, wherever they are.

        Args:
            partition: Of the users.
            before_ms: By user key, the time up to which the user is forgotten.
            absent: Users whose null value is to leave also if no row of them is known; that of
                one whose row is here and empty does so, too. None: only where a row is erased.

        Returns:
            How many rows were moved, and how many of these had events.
        """
        here = self._slots.setdefault(partition, {})
        away = [key for key in before_ms if key not in here]
        stored = self._store.get(partition, away)
        keys = [key for key in before_ms if key in here]
        keys += [key for key, row in zip(away, stored, strict=True) if row is not None]
        if absent:
            keys = list(dict.fromkeys([*keys, *absent]))
        if not keys:
            return 0, 0
        self.tick()
        slots = self.find(partition, keys)
        times = np.array([before_ms[key] for key in keys], np.int64)
        stale = self.heads["forgotten_before_ms"][slots] < times
        stale &= self.heads["event_count"][slots] > 0
        self.erase(slots[stale], times[stale])
        moved = stale if absent is None else self.heads["event_count"][slots] == 0
        self.mark_moved(partition, slots[moved])
        return int(np.count_nonzero(moved)), int(np.count_nonzero(stale))

    def snapshot(self, partition: int) -> tuple[list[tuple[bytes, bytes | None]], SnapshotToken]:
        """Return the moved rows as (key, row) pairs; only here hidden states leave the device.

        A row without events is that of a user who was forgotten: it is none.
        """
        slots = np.flatnonzero(self._moved & (self._partition == partition))
        self._moved[slots] = False
        self._moved_rows[partition] = 0
        self._unsettled[slots] += 1
        [hidden] = to_host(self.hidden[self.index(slots)])
        rows = self.layout.encode(self.heads[slots], hidden)
        keys, has_events = self._keys, self.heads["event_count"][slots] > 0
        self._is_listed[slots[~has_events]] = False
        token = SnapshotToken(slots, self._lives.get(partition, 0))
        return [
            (keys[slot], row if is_row else None)
            for slot, row, is_row in zip(slots.tolist(), rows, has_events.tolist(), strict=True)
        ], token

    def settled(self, partition: int, token: SnapshotToken) -> None:
        """Note that the store holds the snapshot's rows."""
        if token.life == self._lives.get(partition, 0):
            self._unsettled[token.slots] -= 1

    def forget(self, partition: int) -> None:
        """Drop every row of the partition; snapshots from before are ignored when they settle."""
        self._lives[partition] = self._lives.get(partition, 0) + 1
        slots = np.flatnonzero(self._partition == partition)
        self._release(slots)
        self._slots.pop(partition, None)
        self._moved_rows.pop(partition, None)

    def relayout(self, layout: RowLayout) -> None:
        """Go over to rows of other sizes: rings are kept as far as they fit, hidden states are not.

        Moved rows stay moved, so the next snapshot writes them in the new layout.

        Raises:
            MemoryError: There is no room for them; everything is as it was.
        """
        heads = layout.convert_heads(self.heads)
        try:
            hidden = _zero_states(layout, len(heads) + 1, self.hidden.device)
        except RuntimeError as error:  # torch's, of either memory
            raise MemoryError(error) from error
        self.heads, self.hidden, self.layout = heads, hidden, layout

    # --- inside

    def _load(self, partition: int, keys: list[bytes]) -> Slots:
        slots = self._take(len(keys))
        found = self._store.get(partition, keys)
        present = [i for i, row in enumerate(found) if row is not None]
        self.heads[slots] = self.layout.new_heads(len(keys))
        self.hidden.index_fill_(0, self.index(slots), 0)  # `[...] = 0` waits, in older torch
        if present:
            try:
                decoded = self.layout.decode([row for row in found if row is not None])
            except StateFormatUnknown as error:
                raise error.at(partition, [keys[i] for i in present]) from error
            for i in np.flatnonzero(decoded.damaged).tolist():
                self._on_damaged(partition, keys[present[i]])
            at = slots[present]
            self.heads[at] = decoded.heads
            hidden = torch.from_numpy(decoded.hidden)
            self.hidden[self.index(at)] = to_device(hidden, self.hidden.device)
        known = self._slots[partition]
        for key, slot in zip(keys, slots.tolist(), strict=True):
            known[key] = slot
            self._keys[slot] = key
        self._partition[slots] = partition
        self._used_at[slots] = self._clock
        return slots

    def _take(self, n: int) -> Slots:
        if len(self._free) < n:
            self._evict(max(n, int(EVICTED_SHARE * len(self._keys))))
        if len(self._free) < n:
            self._grow(n)
        taken = self._free[-n:]
        del self._free[-n:]
        return np.array(taken, np.int64)

    def _evict(self, n: int) -> None:
        """Drop up to n rows that the store holds and no one uses now, longest unused first."""
        idle = (self._partition >= 0) & ~self._moved & (self._unsettled == 0)
        slots = np.flatnonzero(idle & (self._used_at < self._clock))
        if len(slots) > n:
            slots = slots[np.argpartition(self._used_at[slots], n)[:n]]
        for slot in slots.tolist():
            del self._slots[int(self._partition[slot])][self._keys[slot]]
        self._release(slots)

    def _release(self, slots: Slots) -> None:
        self._partition[slots] = -1
        self._moved[slots] = False
        self._unsettled[slots] = 0
        self._is_listed[slots] = False
        for slot in slots.tolist():
            self._keys[slot] = b""
        self._free.extend(slots.tolist())

    def _grow(self, n: int) -> None:
        old = len(self._keys)
        more = max(n, old)
        self.heads = np.concatenate([self.heads, self.layout.new_heads(more)])
        self.hidden = torch.cat([self.hidden, _zero_states(self.layout, more, self.hidden.device)])
        self._keys.extend([b""] * more)
        self._partition = np.concatenate([self._partition, np.full(more, -1, np.int64)])
        self._used_at = np.concatenate([self._used_at, np.zeros(more, np.int64)])
        self._moved = np.concatenate([self._moved, np.zeros(more, np.bool_)])
        self._unsettled = np.concatenate([self._unsettled, np.zeros(more, np.int64)])
        self._is_listed = np.concatenate([self._is_listed, np.zeros(more, np.bool_)])
        self._free.extend(range(old + more - 1, old - 1, -1))


def _zero_states(layout: RowLayout, n: int, device: torch.device) -> Tensor:
    return torch.zeros((n, layout.blocks, layout.channels), dtype=torch.complex64, device=device)
