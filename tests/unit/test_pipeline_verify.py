"""`lrurec verify` on topics that are lists: true ones hold, and every kind of wrong is found."""

from collections.abc import Callable
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from models.release import Release
from pipeline.settings import FieldSettings, RecommendSettings, Settings
from pipeline.verification.report import Kind, VerifyReport
from tests.verify_world import RING, K, StreamWorld, small_release

SETTINGS = Settings(
    recommend=RecommendSettings(top_k=K, ring=RING),
    fields=FieldSettings(accepted_event_types=("view",)),
)
VIEW = {"event_type": "view"}


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """Three releases: two of one shape, and one of another with fewer items."""
    folder = tmp_path_factory.mktemp("releases")
    return [
        small_release(folder, 1),
        small_release(folder, 2),
        small_release(folder, 3, n_items=6, hidden=6),
    ]


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


def wrong(report: VerifyReport) -> dict[Kind, int]:
    """How many things of each kind are wrong."""
    counts = {
        Kind.MISSING: report.offsets.missing,
        Kind.ROW: report.rows_wrong,
        Kind.STATE: report.states_different,
        Kind.LETTER: report.dead_letters_wrong,
        Kind.NO_OUTPUT: report.outputs.missing,
        Kind.OUTPUT: report.outputs.wrong,
        Kind.SHORT: report.outputs.short,
        Kind.STALE: report.stale,
    }
    found = {kind: count for kind, count in counts.items() if count}
    assert report.holds == (not found)
    assert {finding.kind for finding in report.findings} == found.keys()
    return found


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


# --- states that are wrong


def test_a_state_that_is_a_little_off_is_found(world: StreamWorld) -> None:
    """The tolerance is 1e-5 in every number of the state."""
    hidden = world.hidden("long").copy()
    hidden[1, 2] += 0.9e-5
    world.forge_row("long", hidden=hidden)
    assert wrong(world.verify()) == {}

    hidden[1, 2] += 0.3e-5
    world.forge_row("long", hidden=hidden)
    report = world.verify()

    assert wrong(report) == {Kind.STATE: 1}
    assert report.max_abs_diff == pytest.approx(1.2e-5, rel=0.05)
    assert report.max_abs_diff_at == (0, 10)


def test_a_state_that_is_no_number_is_found(world: StreamWorld) -> None:
    """NaN is different from everything."""
    world.forge_row("long", hidden=world.hidden("long") * np.complex64(np.nan))

    report = world.verify()

    assert wrong(report) == {Kind.STATE: 1}
    assert report.max_abs_diff > 1e300


def test_a_state_that_other_weights_made_is_found(
    world: StreamWorld, releases: list[Release]
) -> None:
    """A row that names other weights than those that made its state is stale."""
    world.announce(releases[1])
    world.forge_row("long", weights_id=releases[1].weights_id, model_version=2)

    found = wrong(world.verify())

    assert found == {Kind.STATE: 1, Kind.STALE: 1}


def test_a_state_that_lost_its_past_is_found(world: StreamWorld) -> None:
    """A row may not say that its state began just now: it would have forgotten its user."""
    world.forge_row("long", started_at=10, hidden=0 * world.hidden("long"), last_item=0)

    report = world.verify()

    assert wrong(report)[Kind.ROW] == 1
    assert report.findings[0].what == "started_at"


def test_a_state_without_weights_is_nothing(world: StreamWorld) -> None:
    """A row that names no weights has no state."""
    world.forge_row("long", weights_id=0, model_version=0, last_item=0)

    assert wrong(world.verify()) == {Kind.ROW: 1}


# --- dead letters that are wrong


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


@pytest.mark.parametrize(
    ("field", "value"),
    [
        ("value", b"{{"),
        ("value", None),
        ("key", None),
        ("reason", b"not_object"),
        ("offset", b"1"),
        ("offset", b"x"),
        ("partition", b"7"),
    ],
)
def test_a_false_letter_is_found(dead_world: StreamWorld, field: str, value: bytes | None) -> None:
    """A letter has its record's bytes, place and reason."""
    log = dead_world.topics.records[dead_world.names.dead_letters, 0]
    assert log[0] is not None
    headers = dict(log[0].headers)
    change: dict[str, Any] = {field: value}
    if field not in ("key", "value"):
        assert value is not None
        change = {"headers": tuple({**headers, f"lrurec-{field}": value}.items())}
    log[0] = replace(log[0], **change)

    assert Kind.LETTER in wrong(dead_world.verify())


# --- recommendations that are wrong


def test_a_missing_recommendation_is_found(world: StreamWorld) -> None:
    """A user whose last event was answered with nothing is found, whatever came before."""
    world.topics.remove(world.names.recommendations, 0, -1)
    world.topics.remove(world.names.recommendations, 1, -1)

    report = world.verify()

    assert wrong(report) == {Kind.NO_OUTPUT: 2}


def test_a_recommendation_that_retention_may_have_removed_is_not_missed(
    world: StreamWorld,
) -> None:
    """Recommendations are removed after a time; a user's oldest going says nothing."""
    end = world.topics.end_offsets(world.names.recommendations)[0]
    world.topics.trim(world.names.recommendations, 0, end)

    report = world.verify()

    assert wrong(report) == {}
    assert report.outputs.unverifiable == 2


def rename(output: dict[str, Any]) -> None:
    output["items"][0]["item_id"] = "nobody-knows"


def swap_first(output: dict[str, Any]) -> None:
    items = output["items"]
    items[0]["score"], items[1]["score"] = items[1]["score"], items[0]["score"]


@pytest.mark.parametrize(
    ("falsify", "kind"),
    [
        (lambda o: o["items"].pop(), Kind.SHORT),
        (lambda o: o["items"].append(o["items"][0]), Kind.OUTPUT),
        (lambda o: o["items"].append({"item_id": "item-6", "score": 0.0}), Kind.OUTPUT),
        (rename, Kind.OUTPUT),
        (lambda o: o.update(model_version=7), Kind.OUTPUT),
        (lambda o: o.update(model_version=0), Kind.OUTPUT),
        (lambda o: o.update(source="fallback"), Kind.OUTPUT),
        (lambda o: o.update(source="cold_start"), Kind.OUTPUT),
        (lambda o: o.update(source="guess"), Kind.OUTPUT),
        (lambda o: o.update(user_id="other"), Kind.OUTPUT),
        (lambda o: o.update(history_length=9), Kind.OUTPUT),
        (lambda o: o.update(items=None), Kind.OUTPUT),
        (lambda o: o["event"].update(timestamp_ms=1), Kind.OUTPUT),
        (lambda o: o["event"].update(partition=5), Kind.OUTPUT),
        (lambda o: o["event"].update(offset=8), Kind.OUTPUT),
        (lambda o: o["event"].update(offset=99), Kind.OUTPUT),
        (lambda o: o["items"][0].update(score=9.0), Kind.STALE),
        (swap_first, Kind.STALE),
    ],
)
@pytest.mark.parametrize(("user", "partition"), [("long", 0), ("short", 1)])
def test_a_false_recommendation_is_found(
    world: StreamWorld,
    falsify: Callable[[dict[str, Any]], object],
    kind: Kind,
    user: str,
    partition: int,
) -> None:
    """Each fact of a recommendation is held to the log, the row and the release it names."""
    world.forge_output(falsify, partition)

    assert kind in wrong(world.verify())


def test_a_list_that_other_weights_made_is_found(
    world: StreamWorld, releases: list[Release]
) -> None:
    """A recommendation that names weights which would have listed other items is stale."""
    world.announce(releases[1])
    for partition in (0, 1):
        world.forge_output(lambda output: output.update(model_version=2), partition)

    assert wrong(world.verify()) == {Kind.STALE: 2}


def test_a_worse_item_in_a_list_is_found(world: StreamWorld) -> None:
    """The best items are listed, none of a lower score in the place of a better one."""

    def worsen(output: dict[str, Any]) -> None:
        listed = {item["item_id"] for item in output["items"]}
        other = next(f"item-{i}" for i in range(8) if f"item-{i}" not in listed)
        output["items"][-1]["item_id"] = other

    world.forge_output(worsen)

    assert wrong(world.verify()) == {Kind.STALE: 1, Kind.ROW: 1}


def test_a_seen_item_in_a_list_is_found(tmp_path: Path, releases: list[Release]) -> None:
    """Where seen items are excluded, no list names one that the row remembers."""
    recommend = RecommendSettings(top_k=K, ring=RING, exclude_seen=True)
    world = StreamWorld(tmp_path, Settings(recommend=recommend), releases[:1])
    world.click_all("user", "0123")
    world.run()
    assert wrong(world.verify()) == {}

    world.forge_output(lambda output: output["items"][0].update(item_id="item-3"))

    assert Kind.OUTPUT in wrong(world.verify())


def test_an_unavailable_item_may_be_left_out(world: StreamWorld) -> None:
    """What the catalogue has called unavailable may be missing from a list, nothing else may."""

    def leave_out(output: dict[str, Any]) -> None:
        world.topics.append(
            world.names.items, 0, output["items"][0]["item_id"].encode(), b'{"available":false}'
        )

    world.forge_output(leave_out)
    assert wrong(world.verify()) == {}

    best = world.topics.records[world.names.recommendations, 0][-1]
    assert best is not None
    world.forge_output(lambda output: output["items"].pop(0))
    assert wrong(world.verify()) == {Kind.SHORT: 1, Kind.ROW: 1}


def test_an_item_of_nobody_in_a_popular_list_is_found(tmp_path: Path) -> None:
    """Without a release, a list holds items of events."""
    world = StreamWorld(tmp_path, SETTINGS)
    world.click("user", "item-1", **VIEW)
    world.run()
    world.forge_output(rename)

    assert Kind.OUTPUT in wrong(world.verify())


def test_a_commit_beyond_the_end_is_found(world: StreamWorld) -> None:
    """Offsets that were committed and do not exist are missing: the topic is another one."""
    world.topics.committed[1] = 5

    assert wrong(world.verify()) == {Kind.MISSING: 3}
