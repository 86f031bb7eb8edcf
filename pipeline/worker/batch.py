"""From chunks to one micro-batch of events, grouped by user, each with its item resolved."""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from models.vocabulary import item_hash
from pipeline.engine.chunks import Chunk
from pipeline.engine.processor import DeadLetter
from pipeline.errors import DeadReason, EventInvalid
from pipeline.events import EventDecoder
from pipeline.user_commands import is_forgotten

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


@dataclass(frozen=True, slots=True)
class DeadRecord:
    """A record that is no usable event.

    Attributes:
        reason: Why, from the closed set.
        letter: What goes to the dead-letter topic.
    """

    reason: DeadReason
    letter: DeadLetter


@dataclass(slots=True)
class MicroBatch:
    """The events of some chunks; users are numbered through all partitions, as in `users`.

    Attributes:
        users: Per partition the distinct user keys, in order of first appearance.
        user: int64 (e,), non-decreasing: the user of each event; a user's events come oldest first.
        offset: int64 (e,), of the record.
        timestamp_ms: int64 (e,), of the event.
        earliest_ms: int64 (e,), the earlier of the event's time and its record's.
        item: int64 (e,), index in the vocabulary; 0 where the release does not know the item.
        item_hash: uint64 (e,), never 0.
        item_ids: The item ids of all events, in the same order.
        event_id: uint64 (e,), hash of the event's own id; 0 where it has none.
        record_ms: int64 (r,), timestamps of all usable records, for the latency.
        dead: Per partition the records that cannot be used.
        skipped: Events whose type does not count.
        forgotten: Events from before the time up to which their user is forgotten.
        forgotten_users: Per partition these events' users, with the offset of the last of each.
    """

    users: dict[int, list[bytes]]
    user: Ints
    offset: Ints
    timestamp_ms: Ints
    earliest_ms: Ints
    item: Ints
    item_hash: Hashes
    item_ids: list[str]
    event_id: Hashes
    record_ms: Ints
    dead: dict[int, list[DeadRecord]] = field(default_factory=dict)
    skipped: int = 0
    forgotten: int = 0
    forgotten_users: dict[int, dict[bytes, int]] = field(default_factory=dict)

    def add_users(self, more: Mapping[int, Sequence[bytes]]) -> None:
        """Number users without events, by partition, behind those that the partition has."""
        sizes = [len(keys) for keys in self.users.values()]
        added = [len(more.get(partition, ())) for partition in self.users]
        before = np.cumsum([0, *added[:-1]])
        self.user += np.repeat(before, sizes)[self.user]
        for partition, keys in more.items():
            self.users[partition].extend(keys)


def event_id_hash(event_id: str | None) -> int:
    """Return the 64-bit hash of an event id; 0 for none."""
    return 0 if event_id is None else xxh3_64_intdigest(event_id.encode()) or 1


def decode_chunks(
    chunks: Sequence[tuple[int, Chunk]],
    decoder: EventDecoder,
    source: str,
    index_of: Mapping[str, int],
    forget_before_ms: Mapping[bytes, int],
) -> MicroBatch:
    """Decode every record of (partition, chunk) pairs; what cannot be used becomes a dead letter.

    Args:
        chunks: In the order they are to be applied.
        decoder: Reads a record's value.
        source: Topic they came from, for the dead letters' headers.
        index_of: Item id to index in the vocabulary of the release that serves.
        forget_before_ms: By user key, the time before which no event counts.
    """
    decode, forget_of = decoder.decode, forget_before_ms.get
    keys: dict[int, dict[bytes, int]] = {partition: {} for partition, _ in chunks}
    rows: dict[int, list[tuple[int, int, int, int]]] = {partition: [] for partition in keys}
    ids: dict[int, list[tuple[str, str | None]]] = {partition: [] for partition in keys}
    dead: dict[int, list[DeadRecord]] = {}
    skipped = forgotten = 0
    forgotten_users: dict[int, dict[bytes, int]] = {}
    for partition, chunk in chunks:
        users, add_row, add_ids = keys[partition], rows[partition].append, ids[partition].append
        for record in chunk.records:
            try:
                event = decode(record.value, record.timestamp)
            except EventInvalid as error:
                letter = dead_letter(record, source, partition, error)
                dead.setdefault(partition, []).append(DeadRecord(error.reason, letter))
                continue
            if event is None:
                skipped += 1
                continue
            before_ms = forget_of(event.user_key, 0)
            if before_ms and is_forgotten(before_ms, event.timestamp_ms, record.timestamp):
                forgotten += 1
                forgotten_users.setdefault(partition, {})[event.user_key] = record.offset
                continue
            user = users.setdefault(event.user_key, len(users))
            add_row((user, record.offset, event.timestamp_ms, record.timestamp))
            add_ids((event.item_id, event.event_id))
    table, names = _concatenate(keys, rows, ids)
    order = np.argsort(table[:, 0], kind="stable")  # by user; a user's events stay in order
    table = table[order]
    names = [names[i] for i in order.tolist()]
    item = np.array([index_of.get(item_id, 0) for item_id, _ in names], np.int64)
    return MicroBatch(
        users={partition: list(users) for partition, users in keys.items()},
        user=table[:, 0],
        offset=table[:, 1],
        timestamp_ms=table[:, 2],
        earliest_ms=np.where(table[:, 3] < 0, table[:, 2], table[:, 2:4].min(axis=1)),
        item=item,
        item_hash=np.array([item_hash(item_id) for item_id, _ in names], np.uint64),
        item_ids=[item_id for item_id, _ in names],
        event_id=np.array([event_id_hash(event_id) for _, event_id in names], np.uint64),
        record_ms=table[:, 3],
        dead=dead,
        skipped=skipped,
        forgotten=forgotten,
        forgotten_users=forgotten_users,
    )


def _concatenate(
    keys: Mapping[int, Mapping[bytes, int]],
    rows: Mapping[int, list[tuple[int, int, int, int]]],
    ids: Mapping[int, list[tuple[str, str | None]]],
) -> tuple[Ints, list[tuple[str, str | None]]]:
    """Join the partitions' events, with the users numbered through."""
    tables, names, first_user = [], [], 0
    for partition, users in keys.items():
        table = np.array(rows[partition], np.int64).reshape(-1, 4)
        table[:, 0] += first_user
        tables.append(table)
        names.extend(ids[partition])
        first_user += len(users)
    return np.concatenate(tables), names


def dead_letter(record: Any, source: str, partition: int, error: EventInvalid) -> DeadLetter:
    """Return the record as it came, with what is wrong with it in further headers."""
    about: list[tuple[str, bytes | None]] = [
        ("lrurec-reason", error.reason.value.encode()),
        ("lrurec-topic", source.encode()),
        ("lrurec-partition", b"%d" % partition),
        ("lrurec-offset", b"%d" % record.offset),
        ("lrurec-timestamp-ms", b"%d" % record.timestamp),
        ("lrurec-error", str(error).encode(errors="backslashreplace")),
    ]
    return DeadLetter(record.key, record.value, record.headers or (), about)
