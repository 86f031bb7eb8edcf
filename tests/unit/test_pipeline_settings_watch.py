"""Lines of a worker's log about settings that look wrong, though nothing fails by them."""

import logging
from dataclasses import replace
from pathlib import Path

import msgspec
import pytest

from pipeline.settings import FieldSettings, RecommendSettings, Settings
from pipeline.worker import settings_watch
from pipeline.worker.settings_watch import LEAST_RECORDS, PERIOD_S, SettingsWatch
from tests.verify_world import RING, K, StreamWorld, small_release

NOW_MS = 1_764_000_000_000  # in November 2025; read in a unit too small, in January 1970
WARNED = settings_watch.__name__


def world(folder: Path, **fields: str) -> StreamWorld:
    """A worker with this mapping."""
    settings = Settings(
        fields=FieldSettings(**fields), recommend=RecommendSettings(top_k=K, ring=RING)
    )
    made = StreamWorld(folder, settings)
    made.topics.now_ms = NOW_MS
    return made


def warnings(caplog: pytest.LogCaptureFixture) -> list[str]:
    """What was said of the settings."""
    return [record.getMessage() for record in caplog.records if record.name == WARNED]


def test_a_wrong_mapping_is_told_with_its_commonest_reason_and_an_example(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """In one line for many micro-batches, with what to do."""
    stream = world(tmp_path, user_id="customer.uid")
    stream.junk(b"no JSON")
    for _ in range(5 * LEAST_RECORDS):
        stream.click("user", "item-1")

    stream.run(batch=10)

    (line,) = warnings(caplog)
    assert f"of the last {LEAST_RECORDS} records that should be events {LEAST_RECORDS}" in line
    assert f"{LEAST_RECORDS - 1} of them as missing_user" in line
    assert "partition 0 offset 1: customer.uid: expected text or an integer, got nothing" in line
    assert "correct fields.* and begin anew" in line
    assert caplog.records[-1].levelno == logging.WARNING


@pytest.mark.parametrize(
    ("good", "bad", "told"),
    [(0, LEAST_RECORDS - 1, False), (50, LEAST_RECORDS - 50, False), (10, LEAST_RECORDS, True)],
    ids=["too few", "a quarter is good", "nearly all are bad"],
)
def test_dead_letters_are_told_only_where_they_are_nearly_all_of_many(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, good: int, bad: int, told: bool
) -> None:
    """Some bad records are every stream's."""
    stream = world(tmp_path)
    for _ in range(good):
        stream.click("user", "item-1")
    for _ in range(bad):
        stream.junk(b"{}")

    stream.run(batch=1000)

    assert bool(warnings(caplog)) == told


def test_a_wrong_mapping_is_told_again_after_a_while(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """As long as it is wrong; by the clock, not by what comes in."""
    now_s = [0.0]
    stream = world(tmp_path, item_id="sku")
    stream.processor._watch = SettingsWatch("clicks", lambda: now_s[0])
    for now_s[0], lines in ((0.0, 1), (PERIOD_S - 1, 1), (PERIOD_S, 2)):
        for _ in range(LEAST_RECORDS):
            stream.click("user", "item-1")

        stream.run(batch=1000)

        assert len(warnings(caplog)) == lines


def test_times_in_a_wrong_unit_are_told_once(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """With the place of one, its time and its record's."""
    stream = world(tmp_path, timestamp_unit="ms")
    stream.click("first", "item-1", partition=1)
    stream.run()
    assert not warnings(caplog)

    stream.click("second", "item-1", partition=1, timestamp_ms=NOW_MS // 1000)
    stream.click("third", "item-1", partition=1, timestamp_ms=NOW_MS // 1000)
    stream.run()

    (line,) = warnings(caplog)
    assert "partition 1 offset 1: the event's time is 1970-01-21T10:00:00Z" in line
    assert "its record's is 2025-11-24T16:00:00Z" in line
    assert "fields.timestamp_unit" in line


def test_a_time_is_told_whatever_year_its_record_is_of(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """A record's own timestamp is any number that a client may send."""
    stream = world(tmp_path)
    value = msgspec.json.encode({"user_id": "u", "item_id": "item-1", "timestamp_ms": 0})
    stream.topics.append(stream.names.interactions, 0, b"u", value, timestamp=2**63 - 1)

    stream.run()

    assert "its record's is 292278994-08-17T07:12:55Z" in warnings(caplog)[0]


@pytest.mark.parametrize(
    ("training", "told"),
    [
        ({"data": {"topic": "another-shop.clicks"}}, True),
        ({"data": {"topic": Settings().topics.interactions}}, False),
        ({"imported": "authors.pth"}, False),
        ({"data": "of no form"}, False),
    ],
    ids=["another topic", "its own", "imported", "unknown"],
)
def test_a_release_that_was_trained_on_another_topic_is_told(
    tmp_path: Path, caplog: pytest.LogCaptureFixture, training: dict[str, object], told: bool
) -> None:
    """Once for each such release, not for each micro-batch: it may be another stream's."""
    stream = world(tmp_path)
    stream.announce(replace(small_release(tmp_path), training=training))
    for _ in range(3):
        stream.click("user", "item-1")

        stream.run()

    lines = warnings(caplog)
    assert len(lines) == told
    if told:
        assert "release 1 was trained on another-shop.clicks, this worker reads lrurec" in lines[0]
        assert "a topics.models of its own" in lines[0]
