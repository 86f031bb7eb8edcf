"""States and recommendations that are wrong are found by `lrurec verify`."""

import shutil
from collections.abc import Callable
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest

from models.release import Release, load_recommender
from pipeline.settings import FieldSettings, RecommendSettings, Settings
from pipeline.verification.report import Kind
from pipeline.verification.states import state_difference
from tests.releases import release_of
from tests.verify_world import RING, K, StreamWorld, small_release, wrong

SETTINGS = Settings(
    recommend=RecommendSettings(top_k=K, ring=RING),
    fields=FieldSettings(accepted_event_types=("view",)),
)
VIEW = {"event_type": "view"}


# --- states that are wrong


def test_a_state_that_is_a_little_off_is_found(world: StreamWorld) -> None:
    """The tolerance is 1e-5 in every number of a state of the order of 1."""
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


def test_rounding_of_large_states_is_no_difference_and_more_than_that_is() -> None:
    """The tolerance is 1e-5 of a state's largest number where that exceeds 1."""
    scanned = np.array([[0.5, 12.0 - 5.0j]], np.complex64)  # 13 in size

    assert state_difference(scanned + np.complex64(1e-4), scanned) == pytest.approx(
        1e-4 / 13, rel=0.02
    )
    assert state_difference(scanned / 20, scanned / 20 + np.complex64(1e-4)) == pytest.approx(
        1e-4, rel=0.02
    )


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


def test_a_folder_that_is_gone_is_no_wrong_name_where_another_has_its_weights(
    tmp_path: Path,
) -> None:
    """Trainings on the same events give the same weights; a row keeps the first one's number."""
    first = small_release(tmp_path)
    world = StreamWorld(tmp_path, Settings(), [first])
    world.click_all("user", "123")
    world.run()
    ids = first.vocabulary.item_ids
    world.announce(release_of(tmp_path, load_recommender(first), ids, version=2))
    shutil.rmtree(first.path)

    report = world.verify()

    assert wrong(report) == {}
    assert report.states == 1
    world.forge_row("user", model_version=3)
    assert wrong(world.verify()) == {Kind.ROW: 1}


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


# --- recommendations that are wrong


def test_a_missing_recommendation_is_found(world: StreamWorld) -> None:
    """A user whose last event was answered with nothing is found, whatever came before."""
    world.topics.remove(world.names.recommendations, 0, -1)
    world.topics.remove(world.names.recommendations, 1, -1)

    report = world.verify()

    assert wrong(report) == {Kind.NO_OUTPUT: 2}


@pytest.mark.parametrize("happens", ["before", "within"])
def test_recommendations_that_retention_removes_meanwhile_are_not_missed(
    tmp_path: Path, releases: list[Release], happens: str
) -> None:
    """Nor is what came before them, by another release and before a crash, taken for the last."""
    world = StreamWorld(tmp_path, SETTINGS, releases[:1])
    topics, name = world.topics, world.names.recommendations
    for digit in "01":
        world.click("user", f"item-{digit}", **VIEW)
    world.process(0)
    world.announce(releases[1])
    world.start()

    def trim(topic: str) -> None:
        if topic == name:
            topics.trim(name, 0, len(topics.records[name, 0]))

    if happens == "before":
        topics.on_read = trim
    else:
        topics.on_record = lambda record: trim(record.topic)
    for item in ("item-2", "item-3"):
        world.run()
        assert wrong(world.verify()) == {}
        topics.trim(name, 0, 0)
        world.click("user", item, **VIEW)


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
        (lambda o: o.update(user_id=msgspec.Raw(b'"\xff"')), Kind.OUTPUT),
        (lambda o: o.update(more=msgspec.Raw(b"[" * 2000 + b"]" * 2000)), Kind.OUTPUT),
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
        item, now_ms = output["items"][0]["item_id"].encode(), output["emitted_at_ms"]
        world.topics.append(world.names.items, 0, item, b'{"available":false}', timestamp=now_ms)

    world.forge_output(leave_out)
    assert wrong(world.verify()) == {}

    best = world.topics.records[world.names.recommendations, 0][-1]
    assert best is not None
    world.forge_output(lambda output: output["items"].pop(0))
    assert wrong(world.verify()) == {Kind.SHORT: 1, Kind.ROW: 1}


def test_an_item_may_have_been_unavailable_before_compaction(
    tmp_path: Path, releases: list[Release]
) -> None:
    """A list without an item whose older records are gone is not called stale."""
    world = StreamWorld(tmp_path, SETTINGS, releases[:1])
    world.click("user", "item-1", **VIEW)
    world.run()
    output = world.topics.records[world.names.recommendations, 0][-1]
    assert output is not None
    assert output.value is not None
    best = msgspec.json.decode(output.value)["items"][0]["item_id"]
    for value in (b'{"available":false}', b'{"available":true}'):
        world.describe(best, value)
        world.click("user", "item-1", **VIEW)
        world.run()
    assert wrong(world.verify()) == {}

    world.topics.remove(world.names.items, 0, 0)

    assert wrong(world.verify()) == {}


def test_an_item_of_nobody_in_a_popular_list_is_found(tmp_path: Path) -> None:
    """Without a release, a list holds items of events."""
    world = StreamWorld(tmp_path, SETTINGS)
    world.click("user", "item-1", **VIEW)
    world.run()
    world.forge_output(rename)

    assert Kind.OUTPUT in wrong(world.verify())


def test_an_item_of_an_event_that_came_in_meanwhile_in_a_popular_list_holds(
    tmp_path: Path,
) -> None:
    """An older event is answered by what other partitions have brought since the log was read."""
    world = StreamWorld(tmp_path, SETTINGS)
    world.click("user", "item-0", **VIEW)

    def go_on(topic: str) -> None:
        if topic == world.names.recommendations:
            world.topics.on_read = lambda topic: None
            world.junk(b"{", partition=1)
            world.click("other", "brand-new", partition=1, **VIEW)
            world.process(1)
            world.run()

    world.topics.on_read = go_on
    assert wrong(world.verify()) == {}

    world.forge_output(rename)
    world.topics.on_read = go_on
    assert Kind.OUTPUT in wrong(world.verify())


def test_what_is_nested_too_deeply_ends_nothing(world: StreamWorld) -> None:
    """A recommendation of that kind is false; an announcement or an item says nothing."""
    names = world.names
    for topic in (names.recommendations, names.models, names.items):
        world.topics.append(topic, 0, b"k", b'{"more":' + b"[" * 5000 + b"]" * 5000 + b"}")

    assert wrong(world.verify()) == {Kind.OUTPUT: 1}


def test_a_commit_beyond_the_end_is_found(world: StreamWorld) -> None:
    """Offsets that were committed and do not exist are missing: the topic is another one."""
    world.topics.committed[1] = 5

    assert wrong(world.verify()) == {Kind.MISSING: 3}
