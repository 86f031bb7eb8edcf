"""What `lrurec verify` reads of a cluster is what consumers see."""

from typing import Any

import pytest

from pipeline.cluster import records
from pipeline.settings import Settings
from pipeline.verification.topics import KafkaTopics


def test_records_of_aborted_transactions_are_not_read(monkeypatch: pytest.MonkeyPatch) -> None:
    """An answer in a transaction that was aborted is none: no consumer ever sees it."""
    asked: list[dict[str, Any]] = []
    monkeypatch.setattr(records, "read_partitions", lambda *_, **options: asked.append(options))

    KafkaTopics(Settings()).read("lrurec.recommendations.v1")

    assert asked == [{"committed": True}]
