"""Chunks of several partitions become one micro-batch, in which every event is its user's."""

from types import SimpleNamespace
from typing import Any

import msgspec
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.chunks import Chunk
from pipeline.events import EventDecoder
from pipeline.settings import FieldSettings
from pipeline.worker.batch import decode_chunks

USERS = ["ada", "bob", "cyd", "dan"]
PARTITIONS = st.integers(0, 2)

chunks = st.lists(st.tuples(PARTITIONS, st.lists(st.sampled_from(USERS), max_size=20)), max_size=6)
added = st.lists(st.tuples(PARTITIONS, st.sets(st.sampled_from(["eve", "fay", "guy"]))))


@given(chunks.filter(len), added)
def test_every_event_is_its_users_whoever_is_added(
    chunks: list[tuple[int, list[str]]], added: list[tuple[int, set[str]]]
) -> None:
    """Users without events change no other's number but by their own; nobody is there twice."""
    made, ends = {}, dict.fromkeys(range(3), 0)
    read: list[tuple[int, Chunk]] = []
    for partition, users in chunks:
        start = ends[partition]
        ends[partition] += len(users)
        records: list[Any] = []
        for offset, user in enumerate(users, start):
            item = f"{partition} {offset}"
            made[item] = partition, user.encode()
            value = msgspec.json.encode({"user_id": user, "item_id": item})
            records.append(SimpleNamespace(value=value, timestamp=7, offset=offset))
        read.append((partition, Chunk(records, start, ends[partition])))
    batch = decode_chunks(read, EventDecoder(FieldSettings()), "clicks", {}, {})
    more = {
        partition: sorted(user.encode() for user in users)
        for partition, users in dict(added).items()
        if partition in batch.users
    }

    batch.add_users(more)

    numbered = [(partition, key) for partition, keys in batch.users.items() for key in keys]
    assert {
        item: numbered[user] for item, user in zip(batch.item_ids, batch.user.tolist(), strict=True)
    } == made
    order = list(zip(batch.user.tolist(), batch.offset.tolist(), strict=True))
    assert order == sorted(order)
    assert len(numbered) == len({*numbered})
    assert {*numbered} == {*made.values()} | {
        (partition, key) for partition, keys in more.items() for key in keys
    }
