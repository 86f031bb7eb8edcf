"""What must have come of the interactions, worked out from the log alone with lists and dicts.

Made to judge the stream, so it shares none of its code but the decoders of records and of commands,
which are deterministic by contract. Knows no state, model or recommendation.
"""

from array import array
from bisect import bisect_left, bisect_right
from collections import deque
from collections.abc import Mapping, Sequence
from contextlib import suppress
from dataclasses import dataclass, field
from itertools import islice

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from pipeline.cluster.records import Record
from pipeline.errors import EventInvalid
from pipeline.events import EventDecoder
from pipeline.user_commands import is_forgotten
from pipeline.verification.commands import Told
from state.row import EVENT_IDS

UserOf = tuple[int, bytes]
"""A user is a partition and a key: the same key on two partitions has two states."""


def hash_of(text: str) -> int:
    """Return what stands for an item or an event id in a state row; never 0."""
    return xxh3_64_intdigest(text.encode()) or 1


class UserHistory:
    """The events of one user that count, oldest first; entry i of every array is event i.

    Attributes:
        number: Its place among all users, in order of first appearance.
        offsets: Of the records.
        items: Hash of each item.
        times_ms: When each happened.
        event_ids: Hash of each event's own id; 0 for none.
        repeats: Offsets of the records that do not count, since their ids are among the last ones.
        deletable: So many of the first events may have gone with a state of the user that was
            deleted since it held what was to be forgotten.
    """

    __slots__ = (
        "_recent",
        "deletable",
        "event_ids",
        "items",
        "number",
        "offsets",
        "repeats",
        "times_ms",
    )

    def __init__(self, number: int) -> None:
        self.number = number
        self.offsets = array("q")
        self.items = array("Q")
        self.times_ms = array("q")
        self.event_ids = array("Q")
        self.repeats: Sequence[int] = ()
        self.deletable = 0
        self._recent: deque[int] | None = None

    def __len__(self) -> int:
        return len(self.offsets)

    def add(self, offset: int, item: int, time_ms: int, event_id: int) -> bool:
        """Take an event; false where its id is among the last ones, so that it does not count."""
        if event_id:
            if self._recent is None:
                self._recent = deque(maxlen=EVENT_IDS)
            if event_id in self._recent:
                self._add_repeat(offset)
                return False
            self._recent.append(event_id)
        self.offsets.append(offset)
        self.items.append(item)
        self.times_ms.append(time_ms)
        self.event_ids.append(event_id)
        return True

    def note_deletable(self) -> None:
        """Note that the last event may have gone with a deleted state, if all before it may."""
        self.deletable += self.deletable == len(self) - 1

    def _add_repeat(self, offset: int) -> None:
        if not isinstance(self.repeats, array):  # most users have none
            self.repeats = array("q")
        self.repeats.append(offset)

    def count_up_to(self, offset: int) -> int:
        """Return how many events lie at or below an offset."""
        return bisect_right(self.offsets, offset)

    def count_below(self, offset: int) -> int:
        """Return how many events lie below an offset."""
        return bisect_left(self.offsets, offset)

    def ends_at(self, count: int, offset: int) -> bool:
        """Tell whether the first `count` events end with the one at that offset."""
        return count > 0 and self.offsets[count - 1] == offset

    def item_array(self) -> npt.NDArray[np.uint64]:
        """Return the items as an array."""
        return np.array(self.items, np.uint64)

    def last_event_ids(self, start: int, stop: int, most: int) -> list[int]:
        """Return the last ids, at most so many, of events start..stop-1, oldest first."""
        ids: list[int] = []
        for event_id in reversed(self.event_ids[start:stop]):
            if event_id:
                ids.append(event_id)
                if len(ids) == most:
                    break
        return ids[::-1]


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A record that is no event.

    Attributes:
        reason: Why.
        key: Its key.
        value: Its value.
        timestamp_ms: The record's own.
        headers: Its headers.
    """

    reason: str
    key: bytes | None
    value: bytes | None
    timestamp_ms: int
    headers: Sequence[tuple[str, bytes]]


@dataclass(slots=True)
class PartitionLog:
    """What one partition of the interactions holds.

    Attributes:
        first: The first offset that still exists.
        end: Behind the last offset.
        committed: What lies below has been answered for.
        compacted: Records may have been taken out of its middle.
        unread: Offsets that retention removed before anybody had answered for them.
        whole_to: Every offset from `first` up to this one came.
        overtaken: Retention removed records while they were read; which ones is not known.
        applied: Records below `committed` that count as events.
        duplicate: Those whose event id makes them repeats.
        skipped: Those whose event type does not count.
        dead: Those that are no events.
        forgotten: Those from before the time up to which their user is forgotten.
        pending: Records from `committed` on.
    """

    first: int
    end: int
    committed: int
    compacted: bool
    unread: range = range(0)
    whole_to: int = field(init=False)
    overtaken: bool = False
    applied: int = 0
    duplicate: int = 0
    skipped: int = 0
    dead: int = 0
    forgotten: int = 0
    pending: int = 0

    def __post_init__(self) -> None:
        self.whole_to = self.first

    def lacks_below(self, first: int) -> bool:
        """Tell whether a record did not come, as the first one that still exists is this by now."""
        return self.whole_to < min(first, self.end)

    @property
    def without_record(self) -> int:
        """Offsets below `committed` with no record: of transactions, or removed by compaction."""
        reached = max(self.first, min(self.committed, self.end))
        events = self.applied + self.duplicate + self.forgotten
        return reached - self.first - events - self.skipped - self.dead

    @property
    def beyond_end(self) -> int:
        """Offsets that were committed and do not exist."""
        return max(0, self.committed - self.end)

    @property
    def lacks_front(self) -> bool:
        """Whether retention has removed events that states may hold."""
        return self.first > 0

    @property
    def lacks_middle(self) -> bool:
        """Whether events that states may hold are gone, and earlier ones are not."""
        return self.overtaken or (self.compacted and self.without_record > 0)

    @property
    def lacks_events(self) -> bool:
        """Whether states may hold events that are gone."""
        return self.lacks_front or self.lacks_middle


@dataclass(slots=True)
class LogOracle:
    """Takes the interactions record by record, in the order of each partition.

    Attributes:
        decoder: Reads records.
        partitions: What is known of each partition.
        told: What the users topic says, by key.
        users: Every user with an event that counts.
        forgotten: By user, the offsets of events that are forgotten.
        dead: Records that are no events, by (partition, offset).
        items: Hashes of all items of events; what is forgotten of a user was popular all the same.
    """

    decoder: EventDecoder
    partitions: dict[int, PartitionLog] = field(default_factory=dict)
    told: Mapping[bytes, Told] = field(default_factory=dict)
    users: dict[UserOf, UserHistory] = field(default_factory=dict)
    forgotten: dict[UserOf, "array[int]"] = field(default_factory=dict)
    dead: dict[tuple[int, int], DeadRecord] = field(default_factory=dict)
    items: set[int] = field(default_factory=set)
    _hashes: dict[str, int] = field(default_factory=dict)

    def begin(self, partition: int, log: PartitionLog) -> None:
        """Begin with a partition; what was taken of it before is forgotten, but for items."""
        self.partitions[partition] = log
        self.users = {user: of for user, of in self.users.items() if user[0] != partition}
        self.forgotten = {user: of for user, of in self.forgotten.items() if user[0] != partition}
        self.dead = {at: record for at, record in self.dead.items() if at[0] != partition}
        for number, history in enumerate(self.users.values()):
            history.number = number

    def take(self, record: Record) -> None:
        """Work out what must have come of one record."""
        log = self.partitions[record.partition]
        log.whole_to += record.offset == log.whole_to
        is_due = record.offset < log.committed
        if not is_due:
            log.pending += 1
        try:
            event = self.decoder.decode(record.value, record.timestamp)
        except EventInvalid as error:
            log.dead += is_due
            self.dead[record.partition, record.offset] = DeadRecord(
                error.reason.value, record.key, record.value, record.timestamp, record.headers
            )
            return
        if event is None:
            log.skipped += is_due
            return
        item = self._hear(event.item_id)
        user = record.partition, event.user_key
        told = self.told.get(event.user_key)
        if told is not None and is_forgotten(
            told.forget_before_ms, event.timestamp_ms, record.timestamp
        ):
            log.forgotten += is_due
            self.forgotten.setdefault(user, array("q")).append(record.offset)
            return
        history = self.users.get(user)
        if history is None:
            history = self.users[user] = UserHistory(len(self.users))
        event_id = 0 if event.event_id is None else hash_of(event.event_id)
        if history.add(record.offset, item, event.timestamp_ms, event_id):
            log.applied += is_due
            if told is not None and told.forgets and record.timestamp < told.settled_ms:
                history.note_deletable()
        else:
            log.duplicate += is_due

    def users_on_several_partitions(self) -> tuple[int, tuple[tuple[int, int], ...]]:
        """Count the keys with events on several partitions; takes 9 bytes a user meanwhile.

        Returns:
            How many, and partition and offset of two events of one of them.
        """
        keys = (xxh3_64_intdigest(key) for _, key in self.users)
        hashes = np.fromiter(keys, np.uint64, len(self.users))
        hashes.sort()
        several = np.unique(hashes[1:][hashes[1:] == hashes[:-1]])
        if not len(several):
            return 0, ()
        one = int(several[0])
        events = (
            (partition, history.offsets[0])
            for (partition, key), history in self.users.items()
            if xxh3_64_intdigest(key) == one
        )
        return len(several), tuple(islice(events, 2))

    def take_item(self, record: Record) -> None:
        """Take the item alone of a record that came in after the log was read."""
        with suppress(EventInvalid):
            event = self.decoder.decode(record.value, record.timestamp)
            if event is not None:
                self._hear(event.item_id)

    def _hear(self, item_id: str) -> int:
        """Note an item of an event; its hash."""
        item = self._hashes.get(item_id)
        if item is None:
            item = self._hashes[item_id] = hash_of(item_id)
            self.items.add(item)
        return item
