"""Recommendations as they are read, the releases they name, and what a list has to keep to."""

import logging
from array import array
from collections.abc import Iterable, Mapping
from dataclasses import dataclass, field

import msgspec

from models.release import Release
from pipeline.cluster.clients import Record
from pipeline.errors import SwapRejected
from pipeline.verification.commands import HEARD_WITHIN_MS, Told
from pipeline.verification.oracle import UserHistory, UserOf, hash_of
from pipeline.worker.releases import decode_announcement, open_announced

logger = logging.getLogger(__name__)


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


@dataclass(frozen=True, eq=False)
class KnownRelease:
    """An announced release.

    Attributes:
        version: As announced.
        release: As read; None where it cannot be read any more.
        index_of: Item id to index.
        index_of_hash: Item hash to index.
    """

    version: int
    release: Release | None
    index_of: Mapping[str, int]
    index_of_hash: Mapping[int, int]

    @property
    def weights_id(self) -> int:
        """Identity of the weights; 0 where the release cannot be read."""
        return self.release.weights_id if self.release else 0


@dataclass(slots=True)
class ListLog:
    """Lists of one release to compute anew, in columns.

    Attributes:
        width: Items of the longest list.
        partition: Of the event behind each list.
        offset: Of that event.
        user: Number of each list's user.
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
        barred: Items that were unavailable at some time, or may have been, so may be missing from a
            list.
        withdrawn: Items that the catalogue calls unavailable, and since when at the latest, in ms.
        told: What the users topic says, by key.
        sampled: Users whose states and lists are computed anew; None: all.
    """

    sizes: frozenset[int]
    exclude_seen: bool
    least_ring: int
    most_ring: int
    barred: frozenset[str]
    withdrawn: Mapping[str, int]
    told: Mapping[bytes, Told]
    sampled: frozenset[UserOf] | None

    def covers(self, user: UserOf) -> bool:
        """Tell whether the user's state and lists are to be computed anew."""
        return self.sampled is None or user in self.sampled

    def excluded(self, output: Output, withdrawn: Mapping[str, int]) -> list[str]:
        """Return the items of a list that were withdrawn long before it was made."""
        since_ms = output.emitted_at_ms - HEARD_WITHIN_MS
        ids = (item.item_id for item in output.items)
        return [item for item in ids if withdrawn.get(item, since_ms) < since_ms]

    def left_out(
        self, known: KnownRelease, user: UserOf, history: UserHistory, count: int
    ) -> list[int]:
        """Return the indices of items that a list leaves out for what the user saw or blocked."""
        left_out: list[int] = []
        told = self.told.get(user[1])
        if told is not None:
            left_out += [known.index_of[item] for item in told.blocked & known.index_of.keys()]
        if self.exclude_seen:
            index_of = known.index_of_hash
            window = history.items[max(0, count - self.most_ring) : count]
            left_out += [index_of[item] for item in window if item in index_of]
        return left_out


def read_releases(announcements: Iterable[Record]) -> list[KnownRelease]:
    """Return every announced release, in the order of their announcements."""
    releases: list[KnownRelease] = []
    for record in announcements:
        announcement = decode_announcement(record.value)
        if announcement is None:
            continue
        try:
            release = open_announced(announcement)
        except SwapRejected as error:
            logger.warning("%s; what it made cannot be verified", error)
            releases.append(KnownRelease(announcement.version, None, {}, {}))
            continue
        index_of = {item: i for i, item in enumerate(release.vocabulary.item_ids, 1)}
        by_hash = {hash_of(item): i for item, i in index_of.items()}
        releases.append(KnownRelease(announcement.version, release, index_of, by_hash))
    return releases


def announced_versions(announcements: Iterable[Record]) -> set[int]:
    """Return the versions of all announced releases."""
    found = (decode_announcement(record.value) for record in announcements)
    return {announcement.version for announcement in found if announcement is not None}


def barred_items(catalogue: Iterable[Record]) -> frozenset[str]:
    """Return the ids of items that the catalogue has called unavailable at some time, or may have.

    Where records are gone, as after compaction, that may be any item which it names.
    """
    named: set[str] = set()
    barred: set[str] = set()
    next_offset: dict[int, int] = {}
    has_gaps = False
    for record in catalogue:
        has_gaps |= record.offset != next_offset.get(record.partition, 0)
        next_offset[record.partition] = record.offset + 1
        try:
            item_id = (record.key or b"").decode()
            named.add(item_id)
            item = None if record.value is None else msgspec.json.decode(record.value)
            if item is None or not item.get("available", True):
                barred.add(item_id)
        except (ValueError, RecursionError, AttributeError):
            continue  # workers log and skip it
    return frozenset(named if has_gaps else barred)


class _CatalogueItem(msgspec.Struct, frozen=True):
    title: str | None = None
    available: bool = True


def withdrawn_items(catalogue: Iterable[Record]) -> dict[str, int]:
    """Return the items that are unavailable now, with the time in ms of the newest record of each.

    An item that any partition calls available is left out: which one came later is not known.
    """
    newest: dict[str, dict[int, int | None]] = {}  # by item and partition; None: available
    for record in catalogue:
        try:
            item_id = (record.key or b"").decode()
            is_available = (
                record.value is not None
                and msgspec.json.decode(record.value, type=_CatalogueItem).available
            )
        except (ValueError, RecursionError):
            continue  # workers log and skip it
        newest.setdefault(item_id, {})[record.partition] = (
            None if is_available else record.timestamp
        )
    withdrawn: dict[str, int] = {}
    for item_id, times_ms in newest.items():
        known = [time_ms for time_ms in times_ms.values() if time_ms is not None]
        if len(known) == len(times_ms):
            withdrawn[item_id] = max(known)
    return withdrawn
