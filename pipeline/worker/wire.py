"""Recommendations as JSON."""

import time
from collections.abc import Sequence

import msgspec

from pipeline.metrics import SOURCES
from pipeline.worker.ranking import Ranked
from state.row import Heads


class RecommendedItem(msgspec.Struct, frozen=True):
    """One item of a recommendation."""

    item_id: str
    score: float


class EventPosition(msgspec.Struct, frozen=True):
    """The last event that a recommendation reflects."""

    partition: int
    offset: int
    timestamp_ms: int


class Recommendation(msgspec.Struct, frozen=True):
    """The value of a recommendation, as consumers read it."""

    user_id: str
    items: list[RecommendedItem]
    model_version: int
    source: str
    event: EventPosition
    emitted_at_ms: int
    history_length: int


def encode_recommendations(
    partition: int, keys: Sequence[bytes], heads: Heads, ranked: Ranked, first: int, version: int
) -> list[tuple[bytes, bytes | None]]:
    """Return (key, value) records for the users of one partition.

    Args:
        partition: Where their events came from.
        keys: User keys, UTF-8.
        heads: (n,) their rows' heads.
        ranked: Lists of the whole batch.
        first: Where this partition's users begin in it.
        version: Model version; 0: none.
    """
    now_ms = time.time_ns() // 1_000_000
    quote = msgspec.json.encode
    item_json = ranked.item_json
    last = first + len(keys)
    records: list[tuple[bytes, bytes | None]] = []
    for key, items, scores, source, offset, timestamp_ms, count in zip(
        keys,
        ranked.items[first:last].tolist(),
        ranked.scores[first:last].tolist(),
        ranked.source[first:last].tolist(),
        heads["offset"].tolist(),
        heads["timestamp_ms"].tolist(),
        heads["event_count"].tolist(),
        strict=True,
    ):
        listed = ",".join(
            [f"{item_json[i]}{score:.7g}}}" for i, score in zip(items, scores, strict=True) if i]
        )
        value = (
            f'{{"user_id":{quote(key.decode()).decode()},"items":[{listed}],'
            f'"model_version":{version},"source":"{SOURCES[source]}",'
            f'"event":{{"partition":{partition},"offset":{offset},"timestamp_ms":{timestamp_ms}}},'
            f'"emitted_at_ms":{now_ms},"history_length":{count}}}'
        )
        records.append((key, value.encode()))
    return records
