"""The interactions topic as one sequence of items per user: what the trainer learns from.

Events count by the worker's own rules: the same decoder, a user's order is the order of the log
within the partition, an event whose id is among its user's last ones is a repeat, and what the
users topic has forgotten never happened. What comes out depends on the records of the given offsets
and on that topic alone, not on how the partitions came in mixed, so an interrupted training finds
the same data again, unless some of it was forgotten meanwhile.

An event takes 16 bytes while it is read, a user the bytes of its key and a dictionary's entry.
"""

import logging
from array import array
from collections import Counter, deque
from collections.abc import Callable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from models.packing import Indices
from models.vocabulary import Vocabulary, item_hash
from pipeline.cluster.records import Record, read_partitions
from pipeline.errors import DeadReason, EventInvalid, NotEnoughEvents
from pipeline.events import EventDecoder
from pipeline.settings import Settings
from pipeline.training.ranges import Ranges
from pipeline.user_commands import is_forgotten, newest_commands, read_user_commands
from pipeline.worker.batch import event_id_hash
from state.row import EVENT_IDS

logger = logging.getLogger(__name__)

PROGRESS_RECORDS = 5000

Ints32 = npt.NDArray[np.int32]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, kw_only=True)
class ReadProgress:
    """How far the reading of the topic is, in records."""

    done: int
    total: int


@dataclass(frozen=True, kw_only=True)
class EventCounts:
    """What came of the records that were read.

    Attributes:
        applied: Events that train.
        rare: Events of items that occur too seldom.
        duplicate: Events whose id was among their user's last ones.
        forgotten: Events from before the time up to which their user is forgotten.
        skipped: Records whose event type does not count.
        dead: Records that are no events, by reason.
    """

    applied: int
    rare: int
    duplicate: int
    forgotten: int
    skipped: int
    dead: Mapping[DeadReason, int]


@dataclass(frozen=True, kw_only=True, eq=False)
class TopicSequences:
    """What a range of the topic holds.

    Attributes:
        vocabulary: The items, most events first, equals by id; its counts are events in this range.
        sequences: Each user's items, oldest first; never empty.
        user_hashes: uint64 (u,), xxh3_64 of each user's key.
        ranges: The offsets that were read.
        counts: What came of the records.
    """

    vocabulary: Vocabulary
    sequences: list[Indices]
    user_hashes: Hashes
    ranges: Ranges
    counts: EventCounts


def read_sequences(
    settings: Settings,
    ranges: Ranges,
    progress: Callable[[ReadProgress], object] = lambda _: None,
) -> TopicSequences:
    """Read a range of the interactions topic, without what the users topic has forgotten by now.

    Args:
        settings: Cluster, topics, fields and least count of an item.
        ranges: Offsets to read; see `pipeline.training.ranges`.
        progress: Called every few thousand records; an exception from it ends the reading.

    Raises:
        BrokerUnavailable: No answer.
        NotEnoughEvents: There is no event, or of no item enough of them.
        TopicMismatch: There is no interactions topic, or no users topic.
    """
    newest = newest_commands(read_user_commands(settings))
    forget_before_ms = {key: command.forget_before_ms for key, (_, command) in newest.items()}
    starts = {partition: start for partition, (start, _) in ranges.items()}
    ends = {partition: end for partition, (_, end) in ranges.items()}
    records = read_partitions(settings.kafka, settings.topics.interactions, starts, ends)
    return gather_sequences(settings, ranges, records, forget_before_ms, progress)


def gather_sequences(
    settings: Settings,
    ranges: Ranges,
    records: Iterable[Record],
    forget_before_ms: Mapping[bytes, int],
    progress: Callable[[ReadProgress], object] = lambda _: None,
) -> TopicSequences:
    """Make sequences of records of the interactions topic.

    Args:
        settings: Topics, fields and least count of an item.
        ranges: The offsets that the records are of.
        records: In the order of the log within each partition, partitions mixed.
        forget_before_ms: Of users by key, what the users topic says.
        progress: As of `read_sequences`.

    Raises:
        NotEnoughEvents: There is no event, or of no item enough of them.
    """
    decode = EventDecoder(settings.fields).decode
    columns = {partition: _Columns() for partition in sorted(ranges)}
    items: dict[str, int] = {}
    dead: Counter[DeadReason] = Counter()
    skipped = forgotten = 0
    total = sum(end - start for start, end in ranges.values())
    for done, record in enumerate(records):
        if done % PROGRESS_RECORDS == 0:
            progress(ReadProgress(done=done, total=total))
        try:
            event = decode(record.value, record.timestamp)
        except EventInvalid as error:
            dead[error.reason] += 1
            continue
        if event is None:
            skipped += 1
            continue
        before_ms = forget_before_ms.get(event.user_key, 0)
        if is_forgotten(before_ms, event.timestamp_ms, record.timestamp):
            forgotten += 1
            continue
        column = columns.get(record.partition)
        if column is None:  # partitions that were added since the ranges were planned
            continue
        number = items.setdefault(event.item_id, len(items))
        column.add(event.user_key, number, event_id_hash(event.event_id))
    progress(ReadProgress(done=total, total=total))

    user, item, event_id, user_hashes = _join([*columns.values()])
    _warn_of_several_partitions(user_hashes, settings.topics.interactions)
    fresh = ~repeated_events(user, event_id)
    user, item = user[fresh], item[fresh]
    least = settings.trainer.min_item_count
    vocabulary, index = number_items(list(items), item, least)
    counts = EventCounts(
        applied=int(np.count_nonzero(index)),
        rare=int(np.count_nonzero(index == 0)),
        duplicate=int(np.count_nonzero(~fresh)),
        forgotten=forgotten,
        skipped=skipped,
        dead=dead,
    )
    if vocabulary is None:
        msg = (
            f"{settings.topics.interactions}: expected events to train on, got none: "
            f"{_describe(counts, total, least)}"
        )
        raise NotEnoughEvents(msg)
    sequences, users = _split_by_user(user[index > 0], index[index > 0])
    return TopicSequences(
        vocabulary=vocabulary,
        sequences=sequences,
        user_hashes=user_hashes[users],
        ranges=dict(ranges),
        counts=counts,
    )


def _describe(counts: EventCounts, total: int, least: int) -> str:
    """Say why no event is left, in the words of an operator."""
    parts = [f"{reason.value} {number}" for reason, number in counts.dead.items()]
    if counts.skipped:
        parts.append(f"event type does not count {counts.skipped}")
    if counts.forgotten:
        parts.append(f"users are forgotten {counts.forgotten}")
    if counts.rare:
        parts.append(f"items with fewer than {least} events (trainer.min_item_count) {counts.rare}")
    return f"{total} offsets read{': ' if parts else ''}{', '.join(parts)}"


@dataclass(slots=True)
class _Columns:
    """The events of one partition, in the order of its log."""

    users: dict[bytes, int] = field(default_factory=dict)
    user: "array[int]" = field(default_factory=lambda: array("i"))
    item: "array[int]" = field(default_factory=lambda: array("i"))
    event_id: "array[int]" = field(default_factory=lambda: array("Q"))

    def add(self, user_key: bytes, item: int, event_id: int) -> None:
        self.user.append(self.users.setdefault(user_key, len(self.users)))
        self.item.append(item)
        self.event_id.append(event_id)


def _join(columns: Sequence[_Columns]) -> tuple[Ints32, Ints32, Hashes, Hashes]:
    """Join the partitions' events, sorted by user, a user's in the order of the log.

    Returns:
        User (numbered through), item and event id of each event, and the hash of each user's key.
    """
    users, items, event_ids, hashes = [], [], [], []
    first_user = 0
    for column in columns:
        users.append(np.frombuffer(column.user, np.int32) + np.int32(first_user))
        items.append(np.frombuffer(column.item, np.int32))
        event_ids.append(np.frombuffer(column.event_id, np.uint64))
        hashes.append(np.fromiter(map(xxh3_64_intdigest, column.users), np.uint64))
        first_user += len(column.users)
    user = np.concatenate(users)
    order = np.argsort(user, kind="stable")
    return (
        user[order],
        np.concatenate(items)[order],
        np.concatenate(event_ids)[order],
        np.concatenate(hashes),
    )


def _warn_of_several_partitions(user_hashes: Hashes, topic: str) -> None:
    """Say how many users have events on several partitions, and are as many users each."""
    _, partitions = np.unique(user_hashes, return_counts=True)
    if several := int(np.count_nonzero(partitions > 1)):
        logger.warning(
            "%s: users with events on several partitions: %d of %d; each is as many users to the "
            "model and to workers: expected all events of a user on one partition, see "
            "docs/existing-topic.md, part 3 (lrurec verify names two such events)",
            topic,
            several,
            len(partitions),
        )


def repeated_events(user: npt.NDArray[np.integer], event_id: Hashes) -> npt.NDArray[np.bool_]:
    """Tell which events are repeats: their id is among their user's last applied ones.

    Args:
        user: (n,), non-decreasing; a user's events come oldest first.
        event_id: uint64 (n,), 0 for none.

    Returns:
        bool (n,).
    """
    repeated = np.zeros(len(user), np.bool_)
    with_id = np.flatnonzero(event_id)
    by_id = with_id[np.lexsort((event_id[with_id], user[with_id]))]
    twice = (user[by_id[1:]] == user[by_id[:-1]]) & (event_id[by_id[1:]] == event_id[by_id[:-1]])
    # Few users have an id twice; only theirs are looked at one by one.
    for suspect in np.unique(user[by_id[1:][twice]]).tolist():
        start, stop = np.searchsorted(user, [suspect, suspect + 1])
        recent: deque[int] = deque(maxlen=EVENT_IDS)
        for place, number in enumerate(event_id[start:stop].tolist(), int(start)):
            if number in recent:
                repeated[place] = True
            elif number:
                recent.append(number)
    return repeated


def number_items(
    item_ids: Sequence[str], item: Ints32, least: int
) -> tuple[Vocabulary | None, Indices]:
    """Make the vocabulary of all items that occur often enough, most events first.

    Args:
        item_ids: Ids by the numbers that `item` uses.
        item: (n,)
        least: Fewest events of an item.

    Returns:
        The vocabulary, None where no item is left, and the index in it of each event; 0 for those
        of other items.
    """
    counts = np.bincount(item, minlength=len(item_ids))
    kept = sorted(np.flatnonzero(counts >= least).tolist(), key=lambda i: (-counts[i], item_ids[i]))
    kept = _without_collisions(kept, item_ids)
    if not kept:
        return None, np.zeros(len(item), np.int64)
    index_of = np.zeros(len(item_ids), np.int64)
    index_of[kept] = np.arange(1, len(kept) + 1)
    return Vocabulary([item_ids[i] for i in kept], counts[kept]), index_of[item]


def _split_by_user(user: Ints32, index: Indices) -> tuple[list[Indices], Indices]:
    """Cut events, sorted by user, into one view per user; also the users, in that order."""
    starts = np.flatnonzero(np.diff(user, prepend=-1))
    return np.split(index, starts[1:]), user[starts].astype(np.int64)


def _without_collisions(kept: list[int], item_ids: Sequence[str]) -> list[int]:
    """Leave out items whose hash a more frequent one has: whoever can send ids can make such."""
    owners: dict[int, int] = {}
    for item in kept:
        owners.setdefault(item_hash(item_ids[item]), item)
    if len(owners) < len(kept):
        logger.warning(
            "%d items have the hash of a more frequent one and are left out of the vocabulary",
            len(kept) - len(owners),
        )
    return list(owners.values())
