"""Users whose events arrive on several partitions: `lrurec verify` counts them, training warns."""

import io
from pathlib import Path

import msgspec
import pytest
from rich.console import Console

from models.release import Release
from pipeline.settings import RecommendSettings, Settings
from pipeline.training.sequences import gather_sequences
from pipeline.verification.view import print_report
from tests.verify_world import ITEMS, RING, K, ListedRecord, StreamWorld, wrong


def test_verify_counts_users_on_several_partitions_and_names_two_events_of_one(
    tmp_path: Path, releases: list[Release]
) -> None:
    """They break no promise: each state and each list is right for what its partition has."""
    settings = Settings(recommend=RecommendSettings(top_k=K, ring=RING))
    world = StreamWorld(tmp_path, settings, releases[:1])
    world.click_all("one", "12")
    world.click_all("both", "345")
    world.click_all("two", "6", partition=1)
    world.click_all("both", "7", partition=1)
    world.run()

    report = world.verify()

    assert wrong(report) == {}
    assert report.users == 4
    assert report.to_json()["users_on_several_partitions"] == 1
    assert report.users_on_several_partitions_at == ((0, 2), (1, 1))


def test_verify_counts_nobody_where_each_user_has_one_partition(world: StreamWorld) -> None:
    """As it should be."""
    report = world.verify()

    assert report.users_on_several_partitions == 0
    assert report.users_on_several_partitions_at == ()


@pytest.mark.parametrize(("partition", "told"), [(0, []), (1, ["1 of 2"])])
def test_a_training_warns_of_users_on_several_partitions(
    caplog: pytest.LogCaptureFixture, partition: int, told: list[str]
) -> None:
    """Once, and only where there are some; to the model they look like as many users."""
    events = [("a", 0), ("b", 1), ("b", 1), ("a", partition)]
    records = [
        ListedRecord(
            "clicks",
            of_event,
            offset,
            1_764_000_000_000,
            None,
            msgspec.json.encode({"user_id": user, "item_id": ITEMS[0]}),
        )
        for offset, (user, of_event) in enumerate(events)
    ]

    gather_sequences(Settings(), dict.fromkeys((0, 1), (0, len(records))), records, {})

    lines = [record.getMessage() for record in caplog.records]
    assert len(lines) == len(told)
    for line, number in zip(lines, told, strict=True):
        assert f"users with events on several partitions: {number};" in line


def test_the_report_names_two_events_of_a_user_on_several_partitions(
    world: StreamWorld,
) -> None:
    """For people: with where to read on."""
    world.click("long", "item-1", partition=1)
    world.run()
    file = io.StringIO()

    print_report(world.verify(), Console(file=file, width=1000))

    assert (
        "users with events on several partitions: 1 (one has partition 0 offset 0 and partition 1 "
        "offset 2)" in file.getvalue()
    )
    assert "every promise holds" in file.getvalue()
