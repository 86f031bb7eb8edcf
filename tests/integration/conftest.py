"""Settings that several modules here start from."""

from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cluster.topics import create_topics
from pipeline.settings import Settings
from tests.kafka import unique_settings
from tests.worker_process import fork_workers


@pytest.fixture(scope="session", autouse=True)
def _quick_starts() -> Iterator[None]:
    """Workers start in a third of the time; `lrurec worker` itself starts in the demo's tests."""
    with fork_workers():
        yield


@pytest.fixture
def one(settings: Settings) -> Settings:
    """Topics of one partition."""
    own = replace(settings, topics=replace(settings.topics, partitions=1))
    create_topics(own)
    return own


@pytest.fixture
def nowhere(tmp_path: Path) -> Settings:
    """Settings of an app that is never started."""
    return unique_settings("127.0.0.1:1", tmp_path, partitions=1)
