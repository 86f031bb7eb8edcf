"""Whose states a data folder holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cluster.topics import NO_ID
from pipeline.errors import TopicMismatch
from pipeline.settings import Settings
from pipeline.worker import data_folder

SETTINGS = Settings()
TOPIC, OTHER = SETTINGS.topics.interactions, "another.topic"


def claim(folder: Path, topic: str, topic_id: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Claim the folder for a topic of a cluster that gives it this id."""
    monkeypatch.setattr(data_folder, "topic_id", lambda kafka, name: topic_id)
    worker = replace(SETTINGS.worker, data_dir=folder)
    topics = replace(SETTINGS.topics, interactions=topic)
    data_folder.claim_data_folder(replace(SETTINGS, worker=worker, topics=topics))


@pytest.mark.parametrize(
    ("first", "then"), [("one", "one"), (NO_ID, NO_ID), (NO_ID, "one"), ("one", NO_ID)]
)
def test_a_folder_is_taken_again_for_its_topic(
    first: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Also where the cluster learned or forgot to give ids."""
    claim(tmp_path, TOPIC, first, monkeypatch)

    claim(tmp_path, TOPIC, then, monkeypatch)


@pytest.mark.parametrize(
    ("topic", "first", "then"),
    [(TOPIC, "one", "two"), (OTHER, NO_ID, NO_ID), (OTHER, NO_ID, "two"), (OTHER, "one", NO_ID)],
)
def test_a_folder_of_another_topic_is_refused(
    topic: str, first: str, then: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """By its id where both are known, by its name where a cluster gives no ids."""
    claim(tmp_path, TOPIC, first, monkeypatch)

    with pytest.raises(TopicMismatch, match=f"its states are of topic {TOPIC} "):
        claim(tmp_path, topic, then, monkeypatch)
