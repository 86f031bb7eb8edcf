"""Whose states a data folder holds."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.cluster.topics import NO_ID
from pipeline.errors import TopicMismatch
from pipeline.settings import Settings
from pipeline.worker import data_folder
from state.errors import StateError
from tests.refusals import file_size_limit, no_more_than_the_rights_of_files

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


def test_a_full_disk_is_told(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """What does not fit is not half there: with room the folder is claimed."""
    with file_size_limit(10), pytest.raises(StateError, match=r"owner.json: .* room on the disk"):
        claim(tmp_path, TOPIC, "one", monkeypatch)

    claim(tmp_path, TOPIC, "one", monkeypatch)


def test_a_note_that_may_not_be_read_is_no_damage(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Nobody is told to remove the folder for want of a right."""
    claim(tmp_path, TOPIC, "one", monkeypatch)
    (tmp_path / "owner.json").chmod(0)

    with (
        no_more_than_the_rights_of_files(),
        pytest.raises(StateError, match=r"owner.json: .* Permission denied.*; see to the rights"),
    ):
        claim(tmp_path, TOPIC, "one", monkeypatch)
