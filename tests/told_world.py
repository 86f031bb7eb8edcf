"""A stream with a clock, for `lrurec verify` where something is told of users."""

from pathlib import Path
from typing import Any

import msgspec

from models.release import Release
from pipeline.settings import RecommendSettings, Settings
from pipeline.verification.report import VerifyReport
from tests.verify_world import RING, K, StreamWorld, wrong

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def make_world(
    folder: Path, releases: list[Release], *, exclude_seen: bool = False, **settings_of: Any
) -> StreamWorld:
    """A stream whose topics have a clock, with two users' answered events."""
    recommend = RecommendSettings(top_k=K, ring=RING, exclude_seen=exclude_seen)
    settings = Settings(recommend=recommend, **settings_of)
    world = StreamWorld(folder, settings, releases[:1])
    world.topics.now_ms = START_MS
    world.click_all("user", "01234")
    world.click_all("other", "567")
    world.run()
    return world


def wait(world: StreamWorld, ms: int = HOUR_MS) -> int:
    """Let time pass; what time it is then."""
    assert world.topics.now_ms is not None
    world.topics.now_ms += ms
    return world.topics.now_ms


def outputs(world: StreamWorld, partition: int = 0) -> list[Any]:
    """The values of a partition's recommendations, None for null."""
    log = world.topics.records[world.names.recommendations, partition]
    values = [record.value for record in log if record is not None]
    return [None if value is None else msgspec.json.decode(value) for value in values]


def listed(world: StreamWorld) -> list[str]:
    """Items of the newest recommendation."""
    return [item["item_id"] for item in outputs(world)[-1]["items"]]


def compact(world: StreamWorld, topic: str = "") -> None:
    """Remove null values, of the changelog or so, and what was before, as Kafka does in time."""
    topic = topic or world.changelog
    log = world.topics.records[topic, 0]
    nulls = {record.key: record.offset for record in log if record and record.value is None}
    for record in list(log):
        if record is not None and record.offset <= nulls.get(record.key, -1):
            world.topics.remove(topic, 0, record.offset)


def verify_twice(world: StreamWorld) -> VerifyReport:
    """Verify with the changelog as it is and compacted; the latter report."""
    assert wrong(world.verify()) == {}
    compact(world)
    return world.verify()
