"""`lrurec verify` where retention has removed events: only what hangs on those is excused."""

from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.release import Release
from pipeline.settings import RecommendSettings, Settings
from pipeline.verification.report import Kind
from tests.verify_world import RING, K, ListedRecord, StreamWorld, wrong

SETTINGS = Settings(recommend=RecommendSettings(top_k=K, ring=RING))


@pytest.fixture
def trimmed(tmp_path: Path, releases: list[Release]) -> StreamWorld:
    """Events with ids of two users; the first event of one of them is gone."""
    world = StreamWorld(tmp_path, SETTINGS, releases[:1])
    for nth, digit in enumerate("01234567"):
        world.click("long", f"item-{digit}", event_id=f"long-{nth}")
    world.click("other", "item-7", event_id="other-0")
    world.run()
    world.topics.trim(world.names.interactions, 0, 1)
    return world


@pytest.mark.parametrize("user", ["long", "other"])
@pytest.mark.parametrize("facts", [{"timestamp_ms": 1}, {"partition": 1}, {"event_count": 0}])
def test_what_no_gone_event_explains_is_found(
    trimmed: StreamWorld, user: str, facts: dict[str, Any]
) -> None:
    """A time, a partition, or fewer events than the log still holds are wrong whatever is gone."""
    assert wrong(trimmed.verify()) == {}

    trimmed.forge_row(user, **facts)

    assert wrong(trimmed.verify())[Kind.ROW] == 1


def test_a_damaged_row_is_found_though_events_are_gone(trimmed: StreamWorld) -> None:
    """No gone event breaks a checksum."""
    row = bytearray(trimmed.row("long"))
    row[-1] ^= 1
    trimmed.topics.append(trimmed.changelog, 0, b"long", bytes(row))

    assert wrong(trimmed.verify()) == {Kind.ROW: 1}


def test_events_that_a_row_lacks_are_missing_though_others_are_gone(trimmed: StreamWorld) -> None:
    """A row that counts three events where seven are left has lost at least four."""
    trimmed.forge_row("long", event_count=3)

    found = wrong(trimmed.verify())

    assert (found[Kind.ROW], found[Kind.MISSING]) == (1, 4)


def test_repeats_of_gone_events_are_not_called_wrong(
    tmp_path: Path, releases: list[Release]
) -> None:
    """Wherever the log begins, an event that did not count since one that is gone has its id."""
    world = StreamWorld(tmp_path, SETTINGS, releases[:1])
    for digit in "0123":
        world.click("user", f"item-{digit}", event_id=digit)
    world.click("user", "item-4")
    for digit in "0123":  # sent again
        world.click("user", f"item-{digit}", event_id=digit)
    world.run()
    for first in range(10):
        world.topics.trim(world.names.interactions, 0, first)
        assert wrong(world.verify()) == {}
    world.click_all("user", "56")
    world.run()
    for first in range(11):
        world.topics.trim(world.names.interactions, 0, first)
        assert wrong(world.verify()) == {}


def test_a_state_that_began_behind_repeats_is_computed_anew(
    tmp_path: Path, releases: list[Release]
) -> None:
    """Once ids no longer hang on what is gone, neither ring nor state is excused."""
    world = StreamWorld(tmp_path, SETTINGS, releases[:1])
    for nth in range(30):
        world.click("user", f"item-{nth % 8}", event_id=str(nth))
    world.run()
    world.announce(releases[1])
    world.click("user", "item-0", event_id="30")
    world.run()
    world.topics.trim(world.names.interactions, 0, 2)
    assert wrong(world.verify()) == {}

    world.forge_row("user", hidden=world.hidden("user") + np.complex64(1))
    assert wrong(world.verify()) == {Kind.STATE: 1}

    world.forge_row("user", ring=world.head("user")["ring"][::-1])
    assert Kind.ROW in wrong(world.verify())


def test_records_that_retention_removed_unread_are_missing(trimmed: StreamWorld) -> None:
    """What lies between the commit and the front of the log is lost; what a row reached is not."""
    trimmed.click_all("long", "55")
    trimmed.process(0)
    trimmed.settle(commit=False)
    trimmed.click_all("new", "666")
    trimmed.topics.trim(trimmed.names.interactions, 0, 11)
    assert trimmed.topics.committed[0] == 9
    assert wrong(trimmed.verify()) == {}

    trimmed.topics.trim(trimmed.names.interactions, 0, 14)
    report = trimmed.verify()

    assert wrong(report) == {Kind.MISSING: 3}
    (finding,) = report.findings
    assert (finding.partition, finding.offset) == (0, 11)


def test_states_without_any_commit_are_told_of(trimmed: StreamWorld) -> None:
    """A group that Kafka has forgotten leaves nothing due; that is said, and is no fault."""
    trimmed.topics.committed = {1: 0}

    report = trimmed.verify()

    assert wrong(report) == {}
    assert report.partitions_uncommitted == 1


# --- removed while it is read


def trim_on_read(world: StreamWorld, *firsts: int) -> None:
    """Have the interactions trimmed at each read of them, before the first record comes."""
    name, left = world.names.interactions, list(firsts)

    def trim(topic: str) -> None:
        if topic == name and left:
            world.topics.trim(name, 0, left.pop(0))

    world.topics.on_read = trim


def trim_on_record(world: StreamWorld, *steps: tuple[int, int]) -> None:
    """Have the interactions trimmed at each read, to an offset once another one has come."""
    name, left = world.names.interactions, list(steps)
    reads = 0

    def count(topic: str) -> None:
        nonlocal reads
        reads += topic == name

    def trim(record: ListedRecord) -> None:
        is_first = record.topic == name and reads + len(left) == len(steps) + 1
        if left and is_first and record.offset == left[0][0]:
            world.topics.trim(name, 0, left.pop(0)[1])

    world.topics.on_read, world.topics.on_record = count, trim


@pytest.mark.parametrize("before", [0, 1])
@pytest.mark.parametrize("after", [2, 4, 6, 9])
def test_retention_before_the_first_record_comes_is_no_fault(
    trimmed: StreamWorld, before: int, after: int
) -> None:
    """What is removed after the first offset was asked for is gone, not missing in the log."""
    trimmed.topics.trim(trimmed.names.interactions, 0, before)
    trim_on_read(trimmed, after)

    report = trimmed.verify()

    assert wrong(report) == {}
    assert report.offsets.applied == 9 - after


@pytest.mark.parametrize(("at", "first"), [(1, 3), (2, 7), (4, 8), (1, 2)])
def test_retention_that_overtakes_the_reader_is_no_fault(
    trimmed: StreamWorld, at: int, first: int
) -> None:
    """A reader goes over the hole without a word; the partition is read anew behind it."""
    trim_on_record(trimmed, (at, first))

    report = trimmed.verify()

    assert wrong(report) == {}
    is_behind = first <= at + 1  # what was read before it went is known
    assert report.offsets.applied == (8 if is_behind else 9 - first)

    trimmed.topics.trim(trimmed.names.interactions, 0, 1)
    trimmed.forge_row("other", timestamp_ms=1)
    assert wrong(trimmed.verify()) == {Kind.ROW: 1}


def test_a_partition_that_is_read_anew_is_judged_like_any_other(trimmed: StreamWorld) -> None:
    """Its events count once, beside those of the others, which are not read again."""
    for user in ("a", "b"):
        trimmed.click_all(user, "01", partition=1)
        trimmed.click_all(user, "23")
    trimmed.run()
    trim_on_record(trimmed, (1, 3))
    report = trimmed.verify()
    assert wrong(report) == {}
    assert (report.users, report.offsets.applied, report.states) == (6, 14, 5)

    trimmed.topics.trim(trimmed.names.interactions, 0, 1)
    trimmed.forge_row("b", hidden=trimmed.hidden("b") + np.complex64(1))
    trimmed.forge_row("a", at=1, hidden=trimmed.hidden("a", 1) + np.complex64(1))
    assert wrong(trimmed.verify()) == {Kind.STATE: 2}


def test_retention_that_overtakes_every_reader_ends_in_doubt(trimmed: StreamWorld) -> None:
    """After a few tries what may rest on the hole is not judged; the rest of it is."""
    trimmed.junk(b"{")
    trimmed.click_all("new", "12")
    trimmed.run()
    trimmed.topics.trim(trimmed.names.interactions, 0, 0)
    steps = (0, 2), (2, 4), (4, 6)
    trim_on_record(trimmed, *steps)
    report = trimmed.verify()
    assert wrong(report) == {}
    assert report.states_unverifiable == 1
    assert report.states == 2

    trimmed.topics.trim(trimmed.names.interactions, 0, 0)
    trim_on_record(trimmed, *steps)
    trimmed.forge_row("new", hidden=trimmed.hidden("new") + np.complex64(1))
    trimmed.forge_row("long", event_count=1)
    assert wrong(trimmed.verify()).keys() == {Kind.ROW, Kind.MISSING, Kind.STATE}


def test_what_retention_removes_after_it_was_answered_for_is_not_missing(
    trimmed: StreamWorld,
) -> None:
    """Though it is behind the commit that was asked for first, and moved no row."""

    def go_on(topic: str) -> None:
        if topic == trimmed.changelog:
            trimmed.junk(b"{")
            trimmed.junk(b"{")
            trimmed.run()
            trimmed.topics.trim(trimmed.names.interactions, 0, 11)

    trimmed.topics.on_read = go_on

    assert wrong(trimmed.verify()) == {}


def test_a_letter_whose_record_compaction_removed_is_no_false_one(trimmed: StreamWorld) -> None:
    """What it is of cannot be known any more."""
    trimmed.junk(b"{")
    trimmed.run()
    trimmed.topics.remove(trimmed.names.interactions, 0, 9)
    assert wrong(trimmed.verify()) == {Kind.LETTER: 1}

    trimmed.topics.compacted.add(trimmed.names.interactions)

    assert wrong(trimmed.verify()) == {}
