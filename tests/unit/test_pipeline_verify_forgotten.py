"""Users who were to be forgotten and are not are found by `lrurec verify`."""

from dataclasses import replace
from pathlib import Path

import pytest

from models.release import Release
from pipeline.settings import FieldSettings
from pipeline.verification.commands import HEARD_WITHIN_MS
from pipeline.verification.report import Kind
from tests.told_world import (
    HOUR_MS,
    MINUTE_MS,
    START_MS,
    compact,
    listed,
    make_world,
    outputs,
    verify_twice,
    wait,
)
from tests.verify_world import ITEMS, StreamWorld, wrong


@pytest.fixture
def world(tmp_path: Path, releases: list[Release]) -> StreamWorld:
    """Two users at the same time; nobody was told anything of them."""
    return make_world(tmp_path, releases)


def test_what_a_stream_forgot_holds(world: StreamWorld) -> None:
    """Forgotten events are accounted for, and states and lists of later ones are computed anew."""
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    assert outputs(world)[-1] is None
    wait(world)
    world.click_all("user", "56")
    world.click("user", "item-7", timestamp_ms=START_MS)  # late
    world.click_all("new", "1")
    world.run()

    before = world.verify()
    report = verify_twice(world)

    assert replace(report, seconds=before.seconds) == before
    assert wrong(report) == {}
    offsets = report.offsets
    assert (offsets.forgotten, offsets.applied, offsets.without_record) == (6, 6, 0)
    assert (report.users, report.rows, report.states) == (3, 3, 3)
    assert (report.users_told, report.users_forgotten, report.unforgotten) == (1, 1, 0)
    assert report.states_unverifiable == 0
    early = sum(made["event"]["offset"] < 5 for made in outputs(world) if made is not None)
    assert report.outputs.unverifiable == early
    assert report.outputs.lists == report.outputs.checked - early
    assert world.head("user")["event_count"] == 2


def test_a_forgotten_user_who_never_came_back_holds(world: StreamWorld) -> None:
    """No row, no list and no missing event are left of such a user."""
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    wait(world)

    report = verify_twice(world)

    assert wrong(report) == {}
    assert (report.users, report.rows, report.offsets.forgotten) == (1, 1, 5)


def test_a_user_who_was_not_forgotten_is_found(world: StreamWorld) -> None:
    """A state and a list that are still there an hour after the command are wrong."""
    world.tell("user", {"forget_before_ms": wait(world)}, heard=False)
    wait(world)

    report = world.verify()

    assert wrong(report) == {Kind.ROW: 1, Kind.OUTPUT: 1}
    assert report.unforgotten == 2
    what = [finding.what for finding in report.findings]
    assert "forgotten_before_ms of a user who was to be forgotten" in what
    assert "offset of a user who was to be forgotten" in what
    assert "last recommendation of a user who was to be forgotten" in what


def test_a_command_is_not_judged_before_it_was_surely_heard(world: StreamWorld) -> None:
    """A state that is to be deleted may still be there, or not any more, for ten minutes."""
    world.tell("user", {"forget_before_ms": wait(world)}, heard=False)
    wait(world, HEARD_WITHIN_MS - 1)
    world.click_all("user", "56")
    report = world.verify()
    assert wrong(report) == {}
    assert report.states_unverifiable == 1

    world.hear()
    assert wrong(world.verify()) == {}
    world.settle()
    report = world.verify()

    assert wrong(report) == {}
    assert report.states_unverifiable == 0

    world.run()
    wait(world, 1)
    report = verify_twice(world)

    assert wrong(report) == {}
    assert (report.states, report.offsets.applied) == (2, 5)


@pytest.mark.parametrize(
    ("facts", "what"),
    [
        ({}, "forgotten_before_ms of a user who was to be forgotten"),
        (
            {"forgotten_before_ms": START_MS + MINUTE_MS},
            "event_count of a user who was to be forgotten",
        ),
        ({"forgotten_before_ms": START_MS + MINUTE_MS + 1}, "forgotten_before_ms"),
    ],
)
def test_a_state_that_kept_its_first_events_is_found(
    world: StreamWorld, facts: dict[str, int], what: str
) -> None:
    """Whatever the row says, it may not count events that were to be forgotten."""
    wait(world)
    world.click_all("user", "56")
    world.run()
    wait(world)
    world.tell("user", {"forget_before_ms": START_MS + MINUTE_MS}, heard=False)
    wait(world)
    world.forge_row("user", **facts)

    report = world.verify()

    assert wrong(report) == {Kind.ROW: 1}
    assert report.unforgotten == 1
    assert report.findings[0].what == what


def test_a_row_that_ends_with_a_forgotten_event_is_found(world: StreamWorld) -> None:
    """Such an event does not count, so a row cannot be of it."""
    before_ms = wait(world)
    world.tell("user", {"forget_before_ms": before_ms}, heard=False)
    world.forge_row("user", forgotten_before_ms=before_ms)
    world.topics.append(world.names.recommendations, 0, b"user", None)
    wait(world)

    report = world.verify()

    assert wrong(report) == {Kind.ROW: 1}
    assert report.unforgotten == 1
    assert report.findings[0].what == "offset of a user who was to be forgotten"


@pytest.mark.parametrize("user", ["user", "other"])
@pytest.mark.parametrize("facts", [{"forgotten_before_ms": START_MS}, {"event_count": 6}])
def test_a_row_of_nobody_who_was_to_be_forgotten_is_just_wrong(
    world: StreamWorld, user: str, facts: dict[str, int]
) -> None:
    """Only a command makes a row say that its user is forgotten, or could be too many events."""
    world.tell("user", {"blocked_items": []})
    world.forge_row(user, **facts)
    wait(world)

    report = world.verify()

    assert wrong(report) == {Kind.ROW: 1}
    assert report.unforgotten == 0


def test_events_may_go_with_a_state_until_the_command_was_heard(world: StreamWorld) -> None:
    """A row lacks those that the deleted one had; more than those are missing."""
    wait(world)
    world.click_all("user", "56")
    world.run()
    wait(world, MINUTE_MS)
    world.tell("user", {"forget_before_ms": START_MS + MINUTE_MS})
    world.settle()
    report = verify_twice(world)
    assert wrong(report) == {}

    wait(world)
    world.click_all("user", "701")
    wait(world, -HOUR_MS)  # a producer's clock
    world.click_all("user", "2")
    wait(world)
    world.run()
    report = world.verify()
    assert wrong(report) == {}
    assert (world.head("user")["event_count"], report.states) == (4, 2)

    world.forge_row("user", event_count=3)
    assert wrong(world.verify()) == {Kind.ROW: 1, Kind.MISSING: 1}


@pytest.mark.parametrize("event_id", ["", "new-"])
def test_later_events_without_a_row_are_missing(world: StreamWorld, event_id: str) -> None:
    """Nothing is excused that came when the command was surely heard."""
    world.tell("user", {"forget_before_ms": START_MS})  # nothing is forgotten
    world.settle()
    wait(world)
    for nth in range(2):
        more = {"event_id": f"{event_id}{nth}"} if event_id else {}
        world.click("user", f"item-{nth}", **more)
    world.topics.committed[0] += 2

    compact(world)
    report = world.verify()

    assert wrong(report) == {Kind.MISSING: 2, Kind.NO_OUTPUT: 1}
    (finding,) = [found for found in report.findings if found.kind == Kind.MISSING]
    assert finding.offset == 8


def test_nothing_is_excused_of_a_user_who_has_items_blocked(world: StreamWorld) -> None:
    """No state is deleted for that."""
    world.tell("user", {"blocked_items": ["item-1"]})
    world.click_all("user", "56")
    world.topics.committed[0] += 2
    world.topics.records[world.changelog, 0].clear()
    wait(world)

    assert wrong(world.verify())[Kind.MISSING] == 7 + 3


def test_a_list_of_a_forgotten_event_is_found(world: StreamWorld) -> None:
    """Long after the command no list reflects an event from before it, be it a late one."""
    world.tell("user", {"forget_before_ms": wait(world)}, heard=False)
    world.settle()
    wait(world)
    world.click("user", "item-1", timestamp_ms=START_MS)
    world.run()

    report = world.verify()

    assert wrong(report) == {Kind.ROW: 1, Kind.OUTPUT: 1}
    assert report.unforgotten == 2
    assert "event of a user who was to be forgotten" in [f.what for f in report.findings]

    world.topics.trim(world.names.interactions, 0, 9)  # its own time tells all the same
    world.topics.records[world.changelog, 0].clear()
    report = world.verify()

    assert wrong(report) == {Kind.OUTPUT: 1}


def test_a_null_value_that_retention_removes_meanwhile_is_not_missed(
    tmp_path: Path, releases: list[Release]
) -> None:
    """The list that it takes back is gone by then, too, though it was read."""
    world = make_world(tmp_path, releases)
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    wait(world)
    topics, name = world.topics, world.names.recommendations
    end = len(topics.records[name, 0])
    topics.on_record = lambda record: (
        topics.trim(name, 0, end) if record.topic == name and record.offset == end - 2 else None
    )

    assert wrong(world.verify()) == {}


@pytest.mark.parametrize("ahead_ms", [0, 2 * HOUR_MS])
def test_a_list_that_was_not_taken_back_is_found(
    tmp_path: Path, releases: list[Release], ahead_ms: int
) -> None:
    """What stands last under a forgotten user's key is a null value or a list of later events."""
    fields = FieldSettings(max_future_s=86400)  # a clock may run ahead: the record's time counts
    world = make_world(tmp_path, releases, fields=fields)
    world.click("user", "item-1", timestamp_ms=START_MS + ahead_ms)
    world.run()
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    wait(world)
    before = world.verify()
    assert wrong(before) == {}
    names = world.names
    for record in list(world.topics.records[names.recommendations, 0]):
        if record is not None and record.value is None:
            world.topics.remove(names.recommendations, 0, record.offset)

    report = world.verify()

    assert wrong(report) == {Kind.OUTPUT: 1}
    assert report.unforgotten == 1
    assert report.outputs.unverifiable == before.outputs.unverifiable - 1

    world.click_all("user", "5")
    world.run()
    assert wrong(world.verify()) == {}


def test_a_list_of_forgotten_events_that_consumers_keep_is_found(world: StreamWorld) -> None:
    """They keep the one of the highest offset, which need not stand last under the key."""
    name, before_ms = world.names.recommendations, wait(world)
    for timestamp_ms in (before_ms, before_ms - 1):  # the second one is late
        world.click("user", "item-5", timestamp_ms=timestamp_ms)
        world.run()
    *_, earlier, _ = world.topics.records[name, 0]
    world.tell("user", {"forget_before_ms": before_ms})
    world.settle()
    wait(world)
    assert wrong(world.verify()) == {}
    null = world.topics.records[name, 0][-1]
    assert null is not None
    assert null.value is None
    assert earlier is not None
    world.topics.remove(name, 0, null.offset)
    world.topics.append(name, 0, earlier.key, earlier.value)

    report = world.verify()

    assert wrong(report) == {Kind.OUTPUT: 1}
    assert report.unforgotten == 1


def test_a_null_value_for_nobody_who_is_forgotten_is_found(world: StreamWorld) -> None:
    """It takes a list away from consumers; the next list gives them one again."""
    world.topics.append(world.names.recommendations, 0, b"user", None)
    assert wrong(world.verify()) == {Kind.NO_OUTPUT: 1}

    world.click_all("user", "5")
    world.run()
    assert wrong(world.verify()) == {}


def test_lists_count_from_where_the_user_began_anew(world: StreamWorld) -> None:
    """A list that counts what was forgotten, or that lost its user's later past, is wrong."""
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    wait(world)
    world.click_all("user", "567")
    world.run()
    assert wrong(world.verify()) == {}

    world.forge_output(lambda output: output.update(history_length=8))

    assert wrong(world.verify()) == {Kind.OUTPUT: 1}
    compact(world)
    assert wrong(world.verify()) == {Kind.OUTPUT: 1}


def test_ids_of_forgotten_events_are_forgotten(world: StreamWorld) -> None:
    """An event is no repeat of one that never happened."""
    world.click("user", "item-1", event_id="a")
    world.run()
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    wait(world)
    world.click("user", "item-2", event_id="a")
    world.run()

    report = verify_twice(world)

    assert wrong(report) == {}
    assert (report.offsets.forgotten, report.offsets.duplicate) == (6, 0)
    assert report.states == 2


def test_a_repeat_of_an_event_that_went_with_the_state_may_count(world: StreamWorld) -> None:
    """The worker that deleted a state knows its ids no more."""
    world.click("user", "item-1", event_id="a")
    world.run()
    world.tell("user", {"forget_before_ms": START_MS})
    world.settle()
    wait(world)
    world.click("user", "item-2", event_id="a")
    world.run()
    report = verify_twice(world)
    assert wrong(report) == {}
    assert report.states_unverifiable == 1

    world.click("user", "item-3")
    world.run()
    assert wrong(world.verify()) == {}


def test_an_event_may_repeat_what_only_the_new_state_remembers(world: StreamWorld) -> None:
    """In the log it repeats nothing: so many ids came since the first one."""
    for event_id in "a1234567":
        world.click("user", "item-1", event_id=event_id)
    world.run()
    world.tell("user", {"forget_before_ms": START_MS})
    world.settle()
    wait(world)
    for event_id in "a8a":
        world.click("user", "item-1", event_id=event_id)
    world.run()
    assert world.head("user")["event_count"] == 2

    assert wrong(verify_twice(world)) == {}


def test_seen_items_that_went_with_the_state_may_be_listed(
    tmp_path: Path, releases: list[Release]
) -> None:
    """Where seen items are excluded, lists leave out what the new row remembers."""
    world = make_world(tmp_path, releases, exclude_seen=True)
    world.tell("user", {"forget_before_ms": START_MS})
    world.settle()
    wait(world)
    world.click("user", "item-5")
    world.run()
    assert set(listed(world)) & set(ITEMS[1:5])  # a ring of them

    assert wrong(verify_twice(world)) == {}

    world.forge_output(lambda output: output["items"][0].update(item_id="item-5"))
    assert Kind.OUTPUT in wrong(world.verify())


def test_who_is_to_be_forgotten_less_is_not_judged(world: StreamWorld) -> None:
    """Which workers keep to the later time cannot be known once its record is compacted away."""
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    wait(world)
    world.tell("user", None)
    wait(world)
    world.click("user", "item-6")
    world.click("user", "item-5", timestamp_ms=START_MS)  # left out still
    world.run()

    report = world.verify()

    assert wrong(report) == {}
    assert (report.users_told, report.users_forgotten) == (1, 1)
    assert (report.states, report.states_unverifiable) == (2, 0)

    world.topics.remove(world.names.users, 0, 0)
    report = world.verify()

    assert wrong(report) == {}
    assert (report.users_told, report.users_forgotten) == (1, 0)
    assert (report.states, report.states_unverifiable) == (1, 1)


def test_who_may_have_been_forgotten_is_not_missed(world: StreamWorld) -> None:
    """A command that was lifted leaves no trace once topics are compacted."""
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    world.tell("user", None)
    wait(world)
    assert wrong(verify_twice(world)) == {}

    world.topics.remove(world.names.users, 0, 0)
    assert wrong(world.verify()) == {}
