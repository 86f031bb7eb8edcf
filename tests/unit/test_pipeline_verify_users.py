"""`lrurec verify` and the users topic: who was to be forgotten is, what is blocked not listed."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest

from models.release import Release
from pipeline.settings import RecommendSettings, Settings
from pipeline.verification.commands import HEARD_WITHIN_MS
from pipeline.verification.report import Kind, VerifyReport
from tests.verify_world import ITEMS, RING, K, StreamWorld, wrong

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
HOUR_MS = 60 * MINUTE_MS


def make_world(folder: Path, releases: list[Release], **recommend: Any) -> StreamWorld:
    """A stream whose topics have a clock, with two users' answered events."""
    settings = Settings(recommend=RecommendSettings(top_k=K, ring=RING, **recommend))
    world = StreamWorld(folder, settings, releases[:1])
    world.topics.now_ms = START_MS
    world.click_all("user", "01234")
    world.click_all("other", "567")
    world.run()
    return world


@pytest.fixture
def world(tmp_path: Path, releases: list[Release]) -> StreamWorld:
    """Two users at the same time; nobody was told anything of them."""
    return make_world(tmp_path, releases)


def wait(world: StreamWorld, ms: int = HOUR_MS) -> int:
    """Let time pass; what time it is then."""
    assert world.topics.now_ms is not None
    world.topics.now_ms += ms
    return world.topics.now_ms


def outputs(world: StreamWorld, partition: int = 0) -> list[Any]:
    """The values of a partition's recommendations, None for null."""
    log = world.topics.records[world.names.recommendations, partition]
    values = [record.value for record in log if record is not None]
    return [None if value is None else msgspec.json.decode(value) for value in values]


def listed(world: StreamWorld) -> list[str]:
    """Items of the newest recommendation."""
    return [item["item_id"] for item in outputs(world)[-1]["items"]]


def compact(world: StreamWorld) -> None:
    """Remove null values from the changelog, and what was there before, as Kafka does in time."""
    log = world.topics.records[world.changelog, 0]
    nulls = {record.key: record.offset for record in log if record and record.value is None}
    for record in list(log):
        if record is not None and record.offset <= nulls.get(record.key, -1):
            world.topics.remove(world.changelog, 0, record.offset)


def verify_twice(world: StreamWorld) -> VerifyReport:
    """Verify with the changelog as it is and compacted; the latter report."""
    assert wrong(world.verify()) == {}
    compact(world)
    return world.verify()


# --- forgotten


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
def test_a_row_that_says_its_user_was_forgotten_is_found(world: StreamWorld, user: str) -> None:
    """Only a command makes a row say so: nobody was to be forgotten."""
    world.tell("user", {"blocked_items": []})
    world.forge_row(user, forgotten_before_ms=START_MS)
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


def test_a_list_that_was_not_taken_back_is_found(world: StreamWorld) -> None:
    """What stands last under a forgotten user's key is a null value or a list of later events."""
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
    """Which workers still keep to the later time cannot be known; compacted away or not."""
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
    assert (report.users_told, report.users_forgotten) == (1, 0)
    assert report.states_unverifiable == 1

    world.topics.remove(world.names.users, 0, 0)
    assert wrong(world.verify()) == {}


def test_who_may_have_been_forgotten_is_not_missed(world: StreamWorld) -> None:
    """A command that was lifted leaves no trace once topics are compacted."""
    world.tell("user", {"forget_before_ms": wait(world)})
    world.settle()
    world.tell("user", None)
    wait(world)
    assert wrong(verify_twice(world)) == {}

    world.topics.remove(world.names.users, 0, 0)
    assert wrong(world.verify()) == {}


# --- blocked


@pytest.mark.parametrize("exclude_seen", [False, True])
@pytest.mark.parametrize("n_blocked", [1, 6])
def test_lists_without_blocked_items_hold(
    tmp_path: Path, releases: list[Release], n_blocked: int, exclude_seen: bool
) -> None:
    """They are neither short nor stale for it."""
    world = make_world(tmp_path, releases, exclude_seen=exclude_seen)
    world.click_all("user", "0")
    world.run()
    blocked = [*listed(world), *(item for item in ITEMS if item not in listed(world))][:n_blocked]
    world.tell("user", {"blocked_items": blocked})
    wait(world)
    world.click_all("user", "0")
    world.run()
    made = listed(world)
    assert not set(made) & set(blocked)
    assert n_blocked < 6 or len(made) < K

    report = world.verify()

    assert wrong(report) == {}
    assert (report.users_told, report.users_forgotten) == (1, 0)
    early = sum(made["user_id"] == "user" for made in outputs(world)) - 1
    assert report.outputs.unverifiable == early
    assert report.outputs.lists == report.outputs.checked - early


@pytest.mark.parametrize("source", ["model", "fallback"])
def test_a_blocked_item_in_a_list_is_found(
    tmp_path: Path, releases: list[Release], source: str
) -> None:
    """Ten minutes after the command no list has the item; before, one may."""
    world = make_world(tmp_path, releases if source == "model" else [])
    world.click_all("user", "0")
    world.run()
    world.tell("user", {"blocked_items": listed(world)}, heard=False)
    wait(world, HEARD_WITHIN_MS - 1)
    world.click_all("user", "0")
    world.run()
    report = world.verify()
    assert outputs(world)[-1]["source"] == source
    assert wrong(report) == {}
    assert report.outputs.unverifiable == sum(o["user_id"] == "user" for o in outputs(world))
    assert report.states_unverifiable == 0

    wait(world, 1)
    world.click_all("user", "0")
    world.run()
    report = world.verify()

    assert wrong(report) == {Kind.OUTPUT: 1}
    assert report.findings[0].expected == "none that its user has blocked"


def test_an_item_whose_block_was_lifted_has_to_be_listed(world: StreamWorld) -> None:
    """A list without the best item is stale once nothing is blocked any more."""
    world.click_all("user", "0")
    world.run()
    world.tell("user", {"blocked_items": listed(world)[:1]})
    world.tell("user", {"blocked_items": []}, heard=False)
    wait(world)
    world.click_all("user", "0")
    world.run()

    assert wrong(world.verify()) == {Kind.STALE: 1}


def test_the_command_with_the_newest_time_rules(world: StreamWorld) -> None:
    """Whichever partition it is on, of equal times the later; what is no command is nothing."""
    world.click_all("user", "0")
    world.run()
    best = listed(world)[:1]
    assert world.topics.now_ms is not None
    for value, partition, age_ms in (
        ({"blocked_items": best}, 0, 5),
        ({"blocked_items": []}, 1, 9),
        ({"blocked": best}, 1, 1),
    ):
        time_ms = world.topics.now_ms - age_ms
        world.tell("user", value, partition=partition, timestamp=time_ms, heard=False)
    wait(world)
    world.click_all("user", "0")
    world.run()
    assert wrong(world.verify()) == {Kind.OUTPUT: 1}

    world.tell("user", {}, partition=1, timestamp=START_MS - 5, heard=False)

    assert wrong(world.verify()) == {}


@pytest.mark.parametrize("n_blocked", [1, 6])
def test_what_is_told_meanwhile_is_left_for_later(world: StreamWorld, n_blocked: int) -> None:
    """A list that was made while topics are read may keep to a command that was not read yet."""
    world.click_all("user", "0")
    world.run()
    best = [*listed(world), *(item for item in ITEMS if item not in listed(world))][:n_blocked]
    world.click_all("user", "0")

    def go_on(topic: str) -> None:
        if topic == world.names.recommendations:
            world.topics.on_read = lambda topic: None
            world.tell("user", {"blocked_items": best})
            world.run()

    checked = world.verify().outputs
    world.topics.on_read = go_on
    report = world.verify()

    assert wrong(report) == {}
    assert report.outputs.checked == checked.checked + 1
    assert report.outputs.unverifiable > checked.unverifiable


def test_a_user_who_is_forgotten_meanwhile_is_left_for_later(world: StreamWorld) -> None:
    """A list that begins anew is right if a command says so that was not read yet."""
    world.click_all("user", "0")

    def go_on(topic: str) -> None:
        if topic == world.names.recommendations:
            world.topics.on_read = lambda topic: None
            world.tell("user", {"forget_before_ms": START_MS})
            world.run()

    world.topics.on_read = go_on

    assert wrong(world.verify()) == {}
