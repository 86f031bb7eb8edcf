"""What several modules here start from: a stream for `lrurec verify` in lists."""

from pathlib import Path

import pytest

from models.release import Release
from pipeline.settings import RecommendSettings, Settings
from tests.verify_world import RING, K, StreamWorld, three_releases


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """Three releases: two of one shape, and one of another with fewer items."""
    return three_releases(tmp_path_factory.mktemp("releases"), fewer_items=6)


@pytest.fixture
def world(tmp_path: Path, releases: list[Release]) -> StreamWorld:
    """Events of three users on two partitions, all answered for: `long` has more than a ring."""
    settings = Settings(recommend=RecommendSettings(top_k=K, ring=RING))
    made = StreamWorld(tmp_path, settings, releases[:1])
    made.click_all("long", "01234567")
    made.click_all("short", "21", partition=1)
    made.click_all("other", "7")
    made.run()
    made.click_all("long", "30")
    made.run()
    return made
