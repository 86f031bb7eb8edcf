"""Lists that hold what the catalogue has withdrawn are found by `lrurec verify`."""

import time
from pathlib import Path

import pytest

from models.release import Release
from pipeline.settings import RecommendSettings, Settings
from pipeline.verification.commands import HEARD_WITHIN_MS
from pipeline.verification.report import Kind
from tests.verify_world import ITEMS, RING, K, StreamWorld, wrong

UNAVAILABLE, AVAILABLE = b'{"available":false}', b'{"available":true}'


@pytest.fixture
def world(tmp_path: Path, releases: list[Release]) -> StreamWorld:
    """A stream that knows of no catalogue, with a list of one user."""
    recommend = RecommendSettings(top_k=K, ring=RING)
    made = StreamWorld(tmp_path, Settings(recommend=recommend), releases[:1])
    made.click_all("user", "0")
    made.run()
    return made


def withdraw_all(world: StreamWorld, value: bytes | None, time_ms: int) -> None:
    """Append what the worker does not hear of."""
    for item in ITEMS:
        world.topics.append(world.names.items, 0, item.encode(), value, timestamp=time_ms)


@pytest.mark.parametrize("value", [UNAVAILABLE, None])
def test_a_withdrawn_item_in_a_list_is_found(world: StreamWorld, value: bytes | None) -> None:
    """A list that was made long after its items were withdrawn may not hold them."""
    withdraw_all(world, value, 1000)

    assert wrong(world.verify()) == {Kind.OUTPUT: 1}


@pytest.mark.parametrize(
    ("value", "minutes_ago"), [(UNAVAILABLE, 1), (AVAILABLE, 60), (b'{"available":0}', 60)]
)
def test_what_is_not_surely_withdrawn_is_not_called_excluded(
    world: StreamWorld, value: bytes, minutes_ago: int
) -> None:
    """A fresh withdrawal may not have been heard; what is available or no item excludes nothing."""
    withdraw_all(world, value, time.time_ns() // 1_000_000 - minutes_ago * 60_000)

    assert wrong(world.verify()) == {}
    assert HEARD_WITHIN_MS > 60_000


def test_an_item_that_came_back_meanwhile_is_not_called_excluded(world: StreamWorld) -> None:
    """Items are asked for again when all lists were read."""
    withdraw_all(world, UNAVAILABLE, 1000)

    def come_back(topic: str) -> None:
        if topic == world.names.recommendations:
            withdraw_all(world, AVAILABLE, 2000)

    world.topics.on_read = come_back

    assert wrong(world.verify()) == {}
