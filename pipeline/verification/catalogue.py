"""What the items topic says of items: which are unavailable, and which were at some time."""

import math
from collections.abc import Iterable, Mapping
from dataclasses import dataclass

import msgspec

from pipeline.cluster.records import Record


@dataclass(frozen=True, slots=True)
class Catalogue:
    """The items topic.

    Attributes:
        barred: Ids of items that were unavailable at some time, or may have been: where records are
            gone, as after compaction, that may be any item which it names.
        withdrawn: Items that are unavailable now, with the time in ms of the newest record of each.
            An item that any partition calls available is none: which came later is not known.
    """

    barred: frozenset[str]
    withdrawn: Mapping[str, float]


class _Item(msgspec.Struct, frozen=True):
    title: str | None = None
    available: bool = True


def read_catalogue(records: Iterable[Record]) -> Catalogue:
    """Read the items topic."""
    named: set[str] = set()
    barred: set[str] = set()
    since_ms: dict[str, dict[int, float]] = {}  # by item and partition; infinite: available
    next_offset: dict[int, int] = {}
    has_gaps = False
    for record in records:
        has_gaps |= record.offset != next_offset.get(record.partition, 0)
        next_offset[record.partition] = record.offset + 1
        try:
            item_id = (record.key or b"").decode()
            named.add(item_id)
            is_available = (
                record.value is not None and msgspec.json.decode(record.value, type=_Item).available
            )
        except (ValueError, RecursionError):
            continue  # workers log and skip it
        if not is_available:
            barred.add(item_id)
        newest = math.inf if is_available else record.timestamp
        since_ms.setdefault(item_id, {})[record.partition] = newest
    latest_ms = {
        item_id: max(of_partitions.values()) for item_id, of_partitions in since_ms.items()
    }
    return Catalogue(
        barred=frozenset(named if has_gaps else barred),
        withdrawn={item_id: ms for item_id, ms in latest_ms.items() if ms < math.inf},
    )
