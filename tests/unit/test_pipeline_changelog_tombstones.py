"""Tombstones of a changelog that may have lost its end, against rows that are newer than it."""

import asyncio
from types import SimpleNamespace

import numpy as np
import pytest

from pipeline.engine.changelog_reader import ChangelogReader
from pipeline.engine.chunks import Chunk
from pipeline.engine.options import EngineOptions
from pipeline.engine.reading import Reading
from state.memory import MemoryStore
from state.row import RowLayout
from tests.property.test_pipeline_recommend import World

LAYOUT = RowLayout(ring=4, recommended=2, blocks=1, channels=1)
OPTIONS = EngineOptions(
    kafka={}, app_id="a", source="in", output="out", dead_letters="dead", changelog="rows"
)


def row(offset: int) -> bytes:
    heads = LAYOUT.new_heads(1)
    heads["event_count"], heads["offset"] = 1, offset
    [encoded] = LAYOUT.encode(heads, np.zeros((1, 1, 1), np.complex64))
    return encoded


@pytest.mark.parametrize("in_one_chunk", [False, True])
@pytest.mark.parametrize(
    ("log", "left", "is_lacking"),
    [
        ([9, None], 20, True),  # the user came back after it, and the log has lost that
        ([None], 20, True),
        ([9, None, 18], 20, True),
        ([20, None], None, False),  # it deletes the very row that is here
        ([9, 25, None], None, False),
        ([9, None, 25], 25, False),
        ([9, 25, None, 27], 27, False),
    ],
    ids=str,
)
def test_a_tombstone_deletes_no_row_that_came_after_it(
    log: list[int | None], left: int | None, is_lacking: bool, in_one_chunk: bool
) -> None:
    """As far as the log can tell; a row that is kept is published again by who gets the partition.

    Numbers are source offsets that rows reflect; the local row reflects 20.
    """
    store = MemoryStore()
    store.open(0)
    store.write(0, [(b"user", row(20))], 30)
    newer = World(None).processor.newer
    reader = ChangelogReader(OPTIONS, 1, store, None, newer, lambda *_: None)  # type: ignore[arg-type]
    records = [
        SimpleNamespace(key=b"user", value=None if offset is None else row(offset), offset=at)
        for at, offset in enumerate(log)
    ]

    async def read() -> Reading:
        reading = Reading(
            partition=0,
            mark=b"m 0",
            next_offset=0,
            end=len(log),
            follow=False,
            broken=True,
            in_bulk=False,
            written_to=0,
        )
        size = len(log) if in_one_chunk else 1
        for at in range(0, len(log), size):
            reader._apply(reading, Chunk(records[at : at + size], at, at + size))
        return reading

    reading = asyncio.run(read())

    [found] = store.get(0, [b"user"])
    assert (None if found is None else LAYOUT.decode([found]).heads["offset"].item()) == left
    assert (b"user" not in reading.seen) == is_lacking
