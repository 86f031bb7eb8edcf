"""Lists that hold what their user has blocked are found by `lrurec verify`."""

from pathlib import Path

import pytest

from models.release import Release
from pipeline.verification.commands import HEARD_WITHIN_MS
from pipeline.verification.report import Kind
from tests.told_world import START_MS, compact, listed, make_world, outputs, wait
from tests.verify_world import ITEMS, K, StreamWorld, wrong


@pytest.fixture
def world(tmp_path: Path, releases: list[Release]) -> StreamWorld:
    """Two users at the same time; nobody was told anything of them."""
    return make_world(tmp_path, releases)


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


@pytest.mark.parametrize("is_taken_back", [False, True])
def test_a_user_who_is_forgotten_meanwhile_is_left_for_later(
    world: StreamWorld, is_taken_back: bool
) -> None:
    """A list that begins anew, or is gone, is right if a command says so that was not read yet."""
    world.click_all("user", "0")
    if is_taken_back:
        world.run()

    def go_on(topic: str) -> None:
        if topic == world.names.recommendations:
            world.topics.on_read = lambda topic: None
            world.tell("user", {"forget_before_ms": START_MS})
            world.run()
            compact(world, topic)

    world.topics.on_read = go_on

    assert wrong(world.verify()) == {}
