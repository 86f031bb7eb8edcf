"""Recommendations as they are read, and what a list has to keep to."""

from array import array
from collections.abc import Mapping
from dataclasses import dataclass, field

import msgspec

from pipeline.verification.commands import HEARD_WITHIN_MS, Told
from pipeline.verification.oracle import UserHistory, UserOf, hash_of
from pipeline.verification.releases import KnownItems


class _Item(msgspec.Struct, frozen=True, gc=False):
    item_id: str
    score: float


class _Event(msgspec.Struct, frozen=True, gc=False):
    partition: int
    offset: int
    timestamp_ms: int


class Output(msgspec.Struct, frozen=True, gc=False):
    """A recommendation, as the topic's documentation promises it to consumers."""

    user_id: str
    items: list[_Item]
    model_version: int
    source: str
    event: _Event
    emitted_at_ms: int
    history_length: int


@dataclass(slots=True)
class ListLog:
    """Lists of one release to compute anew, in columns.

    Attributes:
        width: Items of the longest list.
        partition: Of the event behind each list.
        offset: Of that event.
        user: Number of each list's user.
        start: The user's first event that the state behind it holds.
        count: How many of the user's events the list reflects.
        items: Indices, `width` per list, 0 where there is none.
        scores: As listed, `width` per list.
        is_cold: Whether a list says that nothing was known of its user.
    """

    width: int
    partition: "array[int]" = field(default_factory=lambda: array("i"))
    offset: "array[int]" = field(default_factory=lambda: array("q"))
    user: "array[int]" = field(default_factory=lambda: array("q"))
    start: "array[int]" = field(default_factory=lambda: array("q"))
    count: "array[int]" = field(default_factory=lambda: array("q"))
    items: "array[int]" = field(default_factory=lambda: array("q"))
    scores: "array[float]" = field(default_factory=lambda: array("d"))
    is_cold: "array[int]" = field(default_factory=lambda: array("b"))

    def add(
        self, output: Output, history: UserHistory, span: tuple[int, int], items: list[int]
    ) -> None:
        """Note a list for later; `span` is its start and count."""
        self.partition.append(output.event.partition)
        self.offset.append(output.event.offset)
        self.user.append(history.number)
        self.start.append(span[0])
        self.count.append(span[1])
        rest = self.width - len(items)
        self.items.extend(items)
        self.items.extend([0] * rest)
        self.scores.extend([item.score for item in output.items])
        self.scores.extend([0.0] * rest)
        self.is_cold.append(output.source == "cold_start")


@dataclass(frozen=True, kw_only=True)
class OutputRules:
    """What a recommendation has to keep to.

    Attributes:
        sizes: Numbers of items that are full lists: what is set, and what rows were written under.
        exclude_seen: Items that the row remembers may not be listed.
        least_ring: No row remembers fewer items, unless its user has fewer.
        most_ring: No row remembers more.
        barred: Hashes of items that were unavailable at some time, or may have been, so may be
            missing from a list.
        withdrawn: Items that the catalogue calls unavailable, and since when at the latest, in ms.
        told: What the users topic says, by key.
        sampled: Users whose states and lists are computed anew; None: all.
    """

    sizes: frozenset[int]
    exclude_seen: bool
    least_ring: int
    most_ring: int
    barred: frozenset[int]
    withdrawn: Mapping[str, float]
    told: Mapping[bytes, Told]
    sampled: frozenset[UserOf] | None

    def covers(self, user: UserOf) -> bool:
        """Tell whether the user's state and lists are to be computed anew."""
        return self.sampled is None or user in self.sampled

    def excluded(self, output: Output, withdrawn: Mapping[str, float]) -> list[str]:
        """Return the items of a list that were withdrawn long before it was made."""
        since_ms = output.emitted_at_ms - HEARD_WITHIN_MS
        ids = (item.item_id for item in output.items)
        return [item for item in ids if withdrawn.get(item, since_ms) < since_ms]

    def left_out(
        self, known: KnownItems, user: UserOf, history: UserHistory, count: int
    ) -> list[int]:
        """Return the indices of items that a list leaves out for what the user saw or blocked."""
        hashes: list[int] = []
        told = self.told.get(user[1])
        if told is not None:
            hashes += map(hash_of, told.blocked)
        if self.exclude_seen:
            hashes += history.items[max(0, count - self.most_ring) : count]
        return known.known_of(hashes)

    def unseen(self, count: int, gone: int | None) -> int:
        """Return how many items more a list may leave out, of events that the log lacks.

        Args:
            count: The user's events up to the list's that the log has.
            gone: How many it lacks; None: not known.
        """
        if not self.exclude_seen:
            return 0
        room = max(0, self.most_ring - count)
        return room if gone is None else min(gone, room)
