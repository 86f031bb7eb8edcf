"""Dead letters that are wrong or missing are found by `lrurec verify`."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from models.release import Release
from pipeline.engine.processor import DeadLetter
from pipeline.settings import FieldSettings, RecommendSettings, Settings
from pipeline.verification.report import Kind
from tests.verify_world import RING, K, StreamWorld, wrong

SETTINGS = Settings(
    recommend=RecommendSettings(top_k=K, ring=RING),
    fields=FieldSettings(accepted_event_types=("view",)),
)
VIEW = {"event_type": "view"}


@pytest.fixture
def dead_world(tmp_path: Path, releases: list[Release]) -> StreamWorld:
    """A stream with two records that are no events."""
    made = StreamWorld(tmp_path, SETTINGS, releases[:1])
    made.junk(b"{")
    made.click("user", "item-1", **VIEW)
    made.junk(b"[]")
    made.run()
    return made


def test_a_missing_dead_letter_is_found(dead_world: StreamWorld) -> None:
    """A record that is neither an event nor a letter is missing."""
    dead_world.topics.remove(dead_world.names.dead_letters, 0, 1)

    report = dead_world.verify()

    assert wrong(report) == {Kind.MISSING: 1}
    assert report.offsets.dead == 1
    assert report.findings[0].offset == 2
    assert report.findings[0].expected == "a dead letter, not_object"


def test_a_letter_that_retention_removed_is_not_missed(dead_world: StreamWorld) -> None:
    """Letters are removed after a time, the log of clicks is not."""
    dead_world.topics.trim(dead_world.names.dead_letters, 0, 2)

    report = dead_world.verify()

    assert wrong(report) == {}
    assert report.dead_letters_unverifiable == 2


def test_a_letter_younger_than_what_retention_left_is_missed(dead_world: StreamWorld) -> None:
    """Retention removes the oldest letters, so a younger one that is not there never was."""
    dead_world.topics.remove(dead_world.names.dead_letters, 0, 1)
    dead_world.topics.append(dead_world.names.dead_letters, 0, b"other", b"x", timestamp=5001)
    dead_world.topics.trim(dead_world.names.dead_letters, 0, 1)

    report = dead_world.verify()

    assert wrong(report) == {Kind.MISSING: 1}
    assert report.dead_letters_unverifiable == 1


@pytest.mark.parametrize("happens", ["before", "within"])
def test_letters_that_retention_removes_meanwhile_are_not_missed(
    tmp_path: Path, happens: str
) -> None:
    """Whether the reader found none of them or was overtaken behind the first."""
    world = StreamWorld(tmp_path, SETTINGS)
    for _ in range(4):
        world.junk(b"{")
    world.run()
    topics, name = world.topics, world.names.dead_letters
    if happens == "before":
        topics.on_read = lambda topic: topics.trim(name, 0, 2) if topic == name else None
    else:
        topics.on_record = lambda record: topics.trim(name, 0, 3) if record.topic == name else None

    report = world.verify()

    assert wrong(report) == {}
    assert report.dead_letters_unverifiable == 2


def test_a_removed_letter_of_a_clock_that_runs_ahead_is_not_missed(tmp_path: Path) -> None:
    """Letters come in the order of their records, whatever times these have."""
    world = StreamWorld(tmp_path, SETTINGS)
    topics, names = world.topics, world.names
    for minutes in (10, 0, 10):
        at_ms = 1_000_000 + minutes * 60_000
        topics.append(names.interactions, 0, b"junk", b"{", timestamp=at_ms)
    topics.now_ms = 1_000_000
    world.run()
    topics.trim(names.dead_letters, 0, 1)

    report = world.verify()

    assert wrong(report) == {}
    assert report.dead_letters_unverifiable == 1

    topics.remove(names.dead_letters, 0, 2)  # no retention removes it before the one that is left

    assert wrong(world.verify()) == {Kind.MISSING: 1}


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", b"{{"),
        ("value", None),
        ("key", None),
        ("reason", b"not_object"),
        ("reason", None),
        ("offset", b"1"),
        ("offset", b"x"),
        ("offset", None),
        ("partition", b"7"),
        ("partition", None),
        ("timestamp-ms", b"7"),
        ("timestamp-ms", b"x"),
    ],
)
def test_a_false_letter_is_found(dead_world: StreamWorld, field: str, value: bytes | None) -> None:
    """A letter has its record's bytes, place, time and reason."""
    log = dead_world.topics.records[dead_world.names.dead_letters, 0]
    assert log[0] is not None
    headers = dict(log[0].headers)
    change: dict[str, Any] = {field: value}
    if field not in ("key", "value"):
        change = {"headers": tuple({**headers, f"lrurec-{field}": value}.items())}
    log[0] = replace(log[0], **change)

    assert Kind.LETTER in wrong(dead_world.verify())


@pytest.mark.parametrize(
    ("record", "value", "is_right"),
    [
        (b"{" * 900_001, b"{" * 900_001, True),
        (b"{" * 900_001, b"{{" * 900_001, False),  # of another record
        (b"{", b"{", False),  # there was room for it
    ],
    ids=["its own", "another", "small"],
)
def test_a_letter_may_have_a_digest_for_a_large_record(
    tmp_path: Path, record: bytes, value: bytes, is_right: bool
) -> None:
    """What is too large for the dead letters is told of there, nothing else is."""
    world = StreamWorld(tmp_path, SETTINGS)
    world.junk(record)
    world.run()
    log = world.topics.records[world.names.dead_letters, 0]
    assert log[0] is not None
    letter = DeadLetter(b"junk", value, (), [*log[0].headers]).without_record()
    log[0] = replace(log[0], key=None, value=None, headers=tuple(letter.about))

    assert wrong(world.verify()) == ({} if is_right else {Kind.LETTER: 1})


@pytest.mark.parametrize(("n_headers", "is_right"), [(81_900, True), (81_800, False)])
def test_a_record_of_very_many_small_headers_is_a_large_one(
    tmp_path: Path, n_headers: int, is_right: bool
) -> None:
    """A header counts for its name and its value, and ten bytes."""
    world = StreamWorld(tmp_path, SETTINGS)
    world.junk(b"{", headers=[("h", b"")] * n_headers)
    world.run()
    log = world.topics.records[world.names.dead_letters, 0]
    assert log[0] is not None
    own, about = log[0].headers[:n_headers], log[0].headers[n_headers:]
    letter = DeadLetter(b"junk", b"{", own, [*about]).without_record()
    log[0] = replace(log[0], key=None, value=None, headers=tuple(letter.about))

    assert dict(letter.about)["lrurec-headers-bytes"] == b"%d" % n_headers
    assert wrong(world.verify()) == ({} if is_right else {Kind.LETTER: 1})


def test_a_letter_has_the_headers_of_its_record(tmp_path: Path) -> None:
    """They come first, in their order; a letter that lost them is false."""
    world = StreamWorld(tmp_path, SETTINGS)
    world.junk(b"{", headers=[("trace", b"1"), ("trace", b"2")])
    world.run()
    assert wrong(world.verify()) == {}
    log = world.topics.records[world.names.dead_letters, 0]
    assert log[0] is not None
    log[0] = replace(log[0], headers=log[0].headers[1:])

    assert wrong(world.verify()) == {Kind.LETTER: 1}


def test_a_letter_tells_the_time_of_its_record(dead_world: StreamWorld) -> None:
    """By it a repaired record can be sent again as of then; letters of old do not have it."""
    topics, name = dead_world.topics, dead_world.names
    records = topics.records[name.interactions, 0]
    log = topics.records[name.dead_letters, 0]
    for number, letter in enumerate(log):
        assert letter is not None
        headers = dict(letter.headers)
        record = records[int(headers["lrurec-offset"])]
        assert record is not None
        assert headers.pop("lrurec-timestamp-ms") == b"%d" % record.timestamp
        log[number] = replace(letter, headers=tuple(headers.items()))

    assert wrong(dead_world.verify()) == {}


def test_a_letter_lies_on_the_partition_of_its_record(dead_world: StreamWorld) -> None:
    """Letters of a partition are read by its number."""
    topics, name = dead_world.topics, dead_world.names.dead_letters
    topics.records[name, 1], topics.records[name, 0] = topics.records[name, 0], []
    topics.records[name, 1] = [replace(r, partition=1) for r in topics.records[name, 1] if r]

    assert wrong(dead_world.verify()) == {Kind.LETTER: 2}


def test_letters_removed_from_another_partition_excuse_nothing(dead_world: StreamWorld) -> None:
    """Retention of one partition says nothing of a letter that another one lacks."""
    dead_world.junk(b"{", partition=1)
    dead_world.run()
    dead_world.topics.trim(dead_world.names.dead_letters, 1, 1)
    dead_world.topics.remove(dead_world.names.dead_letters, 0, 1)

    report = dead_world.verify()

    assert wrong(report) == {Kind.MISSING: 1}
    assert report.dead_letters_unverifiable == 1
