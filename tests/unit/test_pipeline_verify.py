"""`lrurec verify` on topics that are lists: true ones hold, and every kind of wrong is found."""

import tracemalloc
from dataclasses import replace
from pathlib import Path

import numpy as np
import pytest

from models.release import Release
from pipeline.settings import FieldSettings, RecommendSettings, Settings
from pipeline.verification.releases import read_releases
from pipeline.verification.report import Kind
from tests.releases import random_release
from tests.verify_world import RING, K, StreamWorld, small_release, wrong

SETTINGS = Settings(
    recommend=RecommendSettings(top_k=K, ring=RING),
    fields=FieldSettings(accepted_event_types=("view",)),
)
VIEW = {"event_type": "view"}


# --- truth


def test_what_a_stream_did_right_holds(tmp_path: Path, releases: list[Release]) -> None:
    """Events, repeats, other types, unknown items and junk are each accounted for."""
    world = StreamWorld(tmp_path, SETTINGS, releases[:1])
    for digit in "0123456":
        world.click("user", f"item-{digit}", event_id=digit, **VIEW)
    world.click("user", "item-6", event_id="6", **VIEW)
    world.click("user", "item-1", event_type="cart")
    world.click("user", "nobody-knows", **VIEW)
    world.junk(b"{")
    world.junk(None, partition=1)
    world.click("user", "item-2", partition=1, **VIEW)
    world.run()
    world.click("late", "item-2", **VIEW)

    report = world.verify()

    assert wrong(report) == {}
    offsets = report.offsets
    assert (offsets.applied, offsets.duplicate, offsets.skipped, offsets.dead) == (9, 1, 1, 2)
    assert (offsets.missing, offsets.pending, offsets.without_record) == (0, 1, 0)
    assert (report.users, report.rows, report.states) == (3, 2, 2)
    assert 0 < report.max_abs_diff < 1e-6
    assert report.max_abs_diff_at in {(0, 9), (1, 1)}
    assert report.outputs.checked == report.outputs.lists == 6
    assert report.to_json()["offsets"]["applied"] == 9


def test_an_empty_cluster_holds(tmp_path: Path, releases: list[Release]) -> None:
    """Where nothing happened nothing is wrong."""
    report = StreamWorld(tmp_path, SETTINGS, releases[:1]).verify()

    assert wrong(report) == {}
    assert report.users == report.states == report.outputs.checked == 0


def test_swaps_of_releases_hold(world: StreamWorld, releases: list[Release]) -> None:
    """Rows of older releases and layouts, rebuilt ones and those that wait for it are all true."""
    for release in (releases[1], releases[2], releases[0]):
        world.announce(release)
        world.click_all("long", "45")
        world.click_all("short", "6", partition=1)
        world.run()

    report = world.verify()

    assert wrong(report) == {}
    assert report.states == 3
    assert world.head("long")["started_at"] > 0
    assert world.head("other")["model_version"] == 1


def test_a_stream_without_a_release_holds(tmp_path: Path) -> None:
    """Rows without a state and lists of what is popular are judged as such."""
    world = StreamWorld(tmp_path, SETTINGS)
    world.click("user", "item-1", **VIEW)
    world.click("user", "whatever", **VIEW)
    world.run()

    report = world.verify()

    assert wrong(report) == {}
    assert (report.rows, report.states, report.outputs.checked) == (1, 0, 1)


def test_excluding_what_was_seen_holds(tmp_path: Path, releases: list[Release]) -> None:
    """Fewer items than K are no fault where all others were seen."""
    recommend = RecommendSettings(top_k=5, ring=RING, exclude_seen=True)
    world = StreamWorld(tmp_path, replace(SETTINGS, recommend=recommend), releases[:1])
    for digit in "01234567":
        world.click("user", f"item-{digit}", **VIEW)
    world.click("user", "nobody-knows", **VIEW)
    world.run(batch=9)
    world.click("user", "item-0", **VIEW)
    world.run()

    report = world.verify()

    assert wrong(report) == {}
    assert report.outputs.lists == 2


def test_a_row_ahead_of_the_commit_is_compared_at_its_own_offset(world: StreamWorld) -> None:
    """Between a checkpoint and its commit rows and outputs are newer than what is committed."""
    world.click_all("long", "5")
    world.process(0)
    world.settle(commit=False)

    report = world.verify()

    assert wrong(report) == {}
    assert report.offsets.pending == 1
    assert world.head("long")["offset"] == 11


def test_a_stream_that_goes_on_meanwhile_holds(world: StreamWorld, releases: list[Release]) -> None:
    """What comes in, is answered and is announced while topics are read is left for later."""

    def go_on(topic: str) -> None:
        if topic == world.names.recommendations:
            world.announce(releases[1])
            world.click_all("long", "5")
            world.click_all("new", "5")
            world.run()

    world.topics.on_read = go_on

    assert wrong(world.verify()) == {}


def test_offsets_without_a_record_are_explained(world: StreamWorld) -> None:
    """A marker of a transaction takes an offset and holds no event."""
    world.topics.append(world.names.interactions, 0, None, None)
    world.topics.remove(world.names.interactions, 0, 11)
    world.click_all("long", "4")
    world.run()

    report = world.verify()

    assert wrong(report) == {}
    assert report.offsets.without_record == 1


def test_events_that_retention_removed_make_states_unverifiable(world: StreamWorld) -> None:
    """A state that rests on removed events is reported, not called wrong; its ring is checked."""
    world.topics.trim(world.names.interactions, 0, 3)

    report = world.verify()

    assert wrong(report) == {}
    assert report.states_unverifiable == 1
    assert report.states == 2
    assert report.offsets.applied == 10

    world.forge_row("long", ring=world.head("long")["ring"][::-1])
    assert wrong(world.verify()) == {Kind.ROW: 1}


def test_a_rebuilt_state_needs_no_older_events(world: StreamWorld, releases: list[Release]) -> None:
    """After a rebuild a state rests on its ring alone; with older events gone it is verified."""
    world.announce(releases[1])
    world.click_all("long", "4")
    world.run()
    assert world.head("long")["started_at"] == 6
    world.topics.trim(world.names.interactions, 0, 6)

    report = world.verify()

    assert wrong(report) == {}
    assert (report.states, report.states_unverifiable) == (3, 0)

    world.topics.trim(world.names.interactions, 0, 7)
    report = world.verify()

    assert wrong(report) == {}
    assert (report.states, report.states_unverifiable) == (2, 1)


def test_events_that_compaction_removed_make_states_unverifiable(world: StreamWorld) -> None:
    """In a compacted source a row may count events that the log does not hold any more."""
    world.topics.remove(world.names.interactions, 0, 2)
    assert wrong(world.verify())[Kind.ROW] == 1

    world.topics.compacted.add(world.names.interactions)
    report = world.verify()

    assert wrong(report) == {}
    assert report.states_unverifiable == 1


def test_a_deleted_user_needs_no_row(world: StreamWorld) -> None:
    """A row that was deleted is not missed; what came after the deletion is counted from there."""
    world.topics.append(world.changelog, 1, b"short", None)
    assert wrong(world.verify()) == {}

    world.store.write(1, [(b"short", None)], None)
    world.start()
    world.click_all("short", "34", partition=1)
    world.run()
    report = world.verify()

    assert wrong(report) == {}
    assert world.head("short", 1)["event_count"] == 2
    assert report.states == 3

    world.forge_row("short", at=1, hidden=world.hidden("short", 1) + np.complex64(1))
    assert wrong(world.verify()) == {Kind.STATE: 1}


def test_lists_whose_state_was_replaced_are_counted(
    world: StreamWorld, releases: list[Release]
) -> None:
    """Lists of an earlier release for more than a ring of events are not passed over in silence."""
    before = world.verify().outputs
    assert (before.unverifiable, before.lists) == (0, before.checked)
    world.announce(releases[1])
    world.click_all("long", "45")
    world.run()

    report = world.verify()

    assert wrong(report) == {}
    outputs = report.outputs
    assert outputs.unverifiable == outputs.checked - outputs.lists > 0


def test_a_release_that_is_gone_makes_states_unverifiable(
    tmp_path: Path, world: StreamWorld
) -> None:
    """Where the weights cannot be read any more nothing is said of what they made."""
    fleeting = small_release(tmp_path / "fleeting", 9)
    world.announce(fleeting)
    world.click_all("short", "6", partition=1)
    world.run()
    (fleeting.path / "weights.safetensors").unlink()

    report = world.verify()

    assert wrong(report) == {}
    assert (report.releases_unreadable, report.states_unverifiable, report.states) == (1, 1, 2)
    assert report.outputs.unverifiable == 1


def test_a_release_that_goes_while_it_is_verified_makes_states_unverifiable(
    tmp_path: Path, world: StreamWorld
) -> None:
    """Its folder is opened again to compute with; that it is gone then breaks no promise."""
    fleeting = small_release(tmp_path / "fleeting", 9)
    world.announce(fleeting)
    world.click_all("short", "6", partition=1)
    world.run()
    weights = fleeting.path / "weights.safetensors"
    world.topics.on_read = lambda topic: (
        weights.unlink(missing_ok=True) if topic == world.names.recommendations else None
    )

    report = world.verify()

    assert wrong(report) == {}
    assert (report.states_unverifiable, report.states) == (1, 2)
    assert report.outputs.unverifiable == 1


def test_little_of_each_release_stays_in_memory(tmp_path: Path) -> None:
    """A dozen bytes an item, however long its id: an hour's release for months fits."""
    world = StreamWorld(tmp_path, SETTINGS)
    ids = [f"stock-keeping-unit-{i}" for i in range(5000)]
    for version in (1, 2, 3):
        world.announce(random_release(tmp_path / "large", ids, version=version, hidden_size=2))
    records = [one for one in world.topics.records[world.names.models, 0] if one is not None]
    read_releases(records)
    tracemalloc.start()
    try:
        releases = read_releases(records)
        held, _ = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert len(releases) == 3
    assert held < 3 * 20 * len(ids)


def test_a_sample_leaves_states_out_but_not_facts(world: StreamWorld) -> None:
    """Only so many states are computed anew; a lost event of another user is still found."""
    report = world.verify(sample=1)

    assert wrong(report) == {}
    assert (report.users, report.rows, report.states) == (3, 3, 1)

    for user, partition in (("long", 0), ("short", 1), ("other", 0)):
        world.forge_row(user, at=partition, timestamp_ms=1)
    assert wrong(world.verify(sample=1)) == {Kind.ROW: 3}


# --- rows that are wrong


def test_an_event_that_was_lost_is_found(world: StreamWorld) -> None:
    """A committed event that no state holds, the last or one before it, is missing."""
    world.topics.committed[0] = 12
    world.click_all("long", "5")

    report = world.verify()

    assert wrong(report) == {Kind.MISSING: 1, Kind.NO_OUTPUT: 1}
    assert report.offsets.applied == 12 - 1 + 2
    (finding,) = [f for f in report.findings if f.kind == Kind.MISSING]
    assert (finding.partition, finding.offset) == (0, 11)


def test_an_event_that_was_stepped_over_is_found(
    tmp_path: Path, world: StreamWorld, releases: list[Release]
) -> None:
    """A state that is right but for one event in its middle is one event short."""
    lossy = StreamWorld(tmp_path, world.settings, releases[:1])
    lossy.click_all("long", "0123456730")
    lossy.topics.remove(lossy.names.interactions, 0, 8)
    lossy.run()
    lossy.topics.records[lossy.names.interactions, 0].clear()
    lossy.click_all("long", "0123456730")

    report = lossy.verify()

    assert report.offsets.missing == 1
    assert wrong(report)[Kind.ROW] == 1
    assert report.offsets.applied == 9


def test_an_event_that_counted_twice_is_found(world: StreamWorld) -> None:
    """A row that counts more events than its user has is wrong."""
    world.forge_row("short", at=1, event_count=3)

    report = world.verify()

    assert wrong(report) == {Kind.ROW: 1}
    (finding,) = report.findings
    assert (finding.what, finding.expected, finding.got) == ("event_count", "2", "3")


def test_a_repeat_that_counted_is_found(tmp_path: Path, releases: list[Release]) -> None:
    """An event whose id came before may not move a state; ids are compared, too."""
    world = StreamWorld(tmp_path, SETTINGS, releases[:1])
    world.click("user", "item-1", event_id="a", **VIEW)
    world.click("user", "item-2", event_id="b", **VIEW)
    world.run()
    assert wrong(world.verify()) == {}
    world.topics.records[world.names.interactions, 0].clear()
    world.click("user", "item-1", event_id="a", **VIEW)
    world.click("user", "item-2", event_id="a", **VIEW)

    assert Kind.ROW in wrong(world.verify())


@pytest.mark.parametrize(
    "facts",
    [
        {"timestamp_ms": 1},
        {"partition": 1},
        {"offset": 3},
        {"offset": 8},
        {"started_at": 7},
        {"started_at": 11},
        {"started_at": -1},
        {"last_item": 5},
        {"model_version": 2},
        {"model_version": 0},
        {"recommended": 1},
        {"event_ids": 1},
        {"weights_id": 77},
    ],
    ids=lambda facts: "-".join(map(str, *facts.items())),
)
def test_a_false_fact_of_a_row_is_found(world: StreamWorld, facts: dict[str, int]) -> None:
    """Each field of a row is held to the log."""
    world.forge_row("long", **facts)

    found = wrong(world.verify())

    assert found.keys() & {Kind.ROW, Kind.MISSING}


@pytest.mark.parametrize("slot", range(RING))
def test_a_false_item_of_the_ring_is_found(world: StreamWorld, slot: int) -> None:
    """Each slot of the ring holds the item of its own event."""
    ring = world.head("long")["ring"].copy()
    ring[slot] ^= np.uint64(1)
    world.forge_row("long", ring=ring)

    report = world.verify()

    assert wrong(report) == {Kind.ROW: 1}
    assert f"ring slot {slot}" in report.findings[0].what


def test_a_ring_that_forgot_is_found(world: StreamWorld) -> None:
    """An empty slot is right only where rings were shorter once."""
    ring = world.head("long")["ring"].copy()
    ring[world.head("long")["event_count"] % RING] = 0  # the oldest
    world.forge_row("long", ring=ring)

    assert wrong(world.verify()) == {Kind.ROW: 1}


def test_a_ring_with_items_of_nobody_is_found(world: StreamWorld) -> None:
    """Slots that no event has reached are empty."""
    ring = world.head("short", 1)["ring"].copy()
    ring[-1] = 99
    world.forge_row("short", at=1, ring=ring)

    assert wrong(world.verify()) == {Kind.ROW: 1}


def test_a_damaged_row_is_found(world: StreamWorld) -> None:
    """A flipped bit or a cut end breaks a row."""
    row = bytearray(world.row("long"))
    row[-1] ^= 1
    world.topics.append(world.changelog, 0, b"long", bytes(row))
    world.topics.append(world.changelog, 1, b"short", world.row("short", 1)[:-1])
    world.topics.append(world.changelog, 0, b"other", b"")

    assert wrong(world.verify()) == {Kind.ROW: 3}


def test_a_row_of_nobody_is_found(world: StreamWorld) -> None:
    """A row without an event of its user came from somewhere else."""
    world.topics.append(world.changelog, 1, b"long", world.row("long"))

    assert wrong(world.verify()) == {Kind.ROW: 1}


def test_a_row_that_is_not_there_is_found(world: StreamWorld) -> None:
    """All events of a user without a row are missing."""
    log = world.topics.records[world.changelog, 0]
    log[:] = [record for record in log if record is not None and record.key != b"long"]

    report = world.verify()

    assert wrong(report) == {Kind.MISSING: 10}
    assert report.offsets.applied == 3
