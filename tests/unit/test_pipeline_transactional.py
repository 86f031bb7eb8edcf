"""With `recommend.transactional` a repeat is not answered: its user's row stays as it was."""

from pathlib import Path

import msgspec
import pytest

from models.vocabulary import item_hash
from pipeline.settings import RecommendSettings, Settings
from tests.verify_world import RING, K, StreamWorld, three_releases, wrong

SETTINGS = Settings(recommend=RecommendSettings(top_k=K, ring=RING, transactional=True))


@pytest.fixture
def world(tmp_path: Path) -> StreamWorld:
    """A user with more events than a row remembers, and a release announced since."""
    first, second, _ = three_releases(tmp_path, fewer_items=6)
    world = StreamWorld(tmp_path, SETTINGS, [first])
    for number in range(7):
        world.click("u", f"item-{number}", event_id=str(number))
    world.run()
    world.announce(second)
    return world


def last_list(world: StreamWorld) -> list[int]:
    """The hashes of what the user was sent last."""
    record = world.topics.records[world.names.recommendations, 0][-1]
    assert record is not None
    assert record.value is not None
    sent = msgspec.json.decode(record.value)
    return [item_hash(item["item_id"]) for item in sent["items"]]


def test_a_repeat_under_the_next_release_changes_no_row(world: StreamWorld) -> None:
    """The next event is measured by the list that its user was sent, and the log explains it."""
    sent = last_list(world)

    world.click("u", "item-6", event_id="6")
    world.run()

    assert last_list(world) == sent == world.head("u")["recommended"].tolist()
    assert wrong(world.verify()) == {}


def test_the_next_event_is_answered_by_the_next_release(world: StreamWorld) -> None:
    """Its state is computed anew by then."""
    world.click("u", "item-6", event_id="6")
    world.click("u", "item-1", event_id="7")
    world.run()

    assert world.head("u")["model_version"] == 2
    assert last_list(world) == world.head("u")["recommended"].tolist()
    assert wrong(world.verify()) == {}


def test_what_is_read_again_under_the_next_release_changes_no_row(tmp_path: Path) -> None:
    """A worker that was killed between its rows and its commit starts with a newer release."""
    first, second, _ = three_releases(tmp_path, fewer_items=6)
    world = StreamWorld(tmp_path, SETTINGS, [first])
    world.click_all("u", "12")
    world.process(0)
    world.settle(commit=False)

    world.announce(second)
    world.holder.take_next()
    world.start()
    world.run()

    assert last_list(world) == world.head("u")["recommended"].tolist()
    assert wrong(world.verify()) == {}


def test_a_repeat_without_an_answer_is_no_short_list(world: StreamWorld) -> None:
    """Lists are counted as they leave."""
    for number in range(8):
        world.catalogue.apply(b"item-%d" % number, None)
    for event_id in ("7", "6"):
        world.click("u", "item-6", event_id=event_id)
        world.run()

    lists = world.topics.records[world.names.recommendations, 0]
    counted = [counter._value.get() for counter in world.metrics.recommendations.values()]
    assert sum(counted) == len(lists)
    assert world.metrics.short_recommendations._value.get() == 1
