"""What the changelog's reader takes for whose, where partitions come and go while it reads."""

import asyncio
from typing import Any

import pytest
from aiokafka.structs import TopicPartition

from pipeline.engine import changelog_reader
from pipeline.engine.changelog_reader import CHUNKS_AHEAD, ChangelogReader
from pipeline.engine.chunks import Chunk
from pipeline.engine.options import EngineOptions
from state.memory import MemoryStore

OPTIONS = EngineOptions(
    kafka={}, app_id="a", source="in", output="out", dead_letters="dead", changelog="rows"
)
END = 100


class Connected:
    """A consumer of a changelog whose partitions all end at the same offset."""

    _fetcher = None

    async def beginning_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, 0)

    async def end_offsets(self, tps: list[TopicPartition]) -> dict[TopicPartition, int]:
        return dict.fromkeys(tps, END)

    def seek(self, tp: TopicPartition, offset: int) -> None:
        return

    pause = resume = lambda self, *tps: None


def test_what_was_fetched_before_is_not_taken_for_a_partition_that_came_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """It waits for the disk, behind another partition's rows; its new reading begins elsewhere."""
    first, second = TopicPartition("rows", 0), TopicPartition("rows", 1)
    chunks = [Chunk([], at, at + 1) for at in range(CHUNKS_AHEAD + 1)]
    fetches = [{second: [Chunk([], 0, 50)]}, {first: chunks, second: [Chunk([], 50, END)]}]

    async def fetch(*_: Any) -> dict[TopicPartition, list[Chunk]]:
        if not fetches:
            await asyncio.Event().wait()
        return fetches.pop(0)

    monkeypatch.setattr(changelog_reader, "fetch_chunks", fetch)

    async def come_back() -> None:
        reader = ChangelogReader(OPTIONS, 2, MemoryStore(), None, None, lambda *_: None)  # type: ignore[arg-type]
        reader._consumer = Connected()
        await reader.begin(0, b"log")
        before = await reader.begin(1, b"log")
        fetching = asyncio.ensure_future(reader._fetch_for_ever())
        await asyncio.sleep(0)
        assert reader._chunks.full()

        reader.drop(before)
        again = await reader.begin(1, b"log")
        while not reader._chunks.empty():
            reader._chunks.get_nowait()
            await asyncio.sleep(0)
        fetching.cancel()

        assert not again.failed.done()

    asyncio.run(come_back())
