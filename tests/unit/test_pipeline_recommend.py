"""The processor in fixed scenes that no random sequence is sure to meet."""

from pathlib import Path
from types import SimpleNamespace
from typing import Any, NoReturn

import msgspec
import numpy as np
import pytest
import torch

from models.release import Release
from models.vocabulary import Vocabulary, item_hash
from pipeline.engine.chunks import Chunk
from pipeline.engine.stop import ExitCode
from pipeline.settings import RecommendSettings, Settings, WorkerSettings
from pipeline.worker import bad_rows
from pipeline.worker.catalogue import Catalogue
from pipeline.worker.popularity import Popularity
from pipeline.worker.served_model import ServedModel, fastest_serving, prepare
from pipeline.worker.wire import Recommendation
from tests.releases import random_release
from tests.verify_world import ITEMS, RING, K, StreamWorld, small_release

# float32 sums of a handful of steps in another order.
STATE_TOLERANCE = 1e-5
SETTINGS = Settings(recommend=RecommendSettings(top_k=K, ring=RING))
MORE_THAN_UNSEEN = len(ITEMS) - RING + 1
"""Items in a list that cannot be filled without one of the ring's."""


def newest_list(world: StreamWorld, partition: int = 0) -> Recommendation:
    """The last recommendation that left a partition."""
    record = world.topics.records[world.names.recommendations, partition][-1]
    assert record is not None
    assert record.value is not None
    return msgspec.json.decode(record.value, type=Recommendation)


def served(release: Release) -> ServedModel:
    """The release as a worker holds it."""
    return prepare(release, device="cpu", top_k=K, ring=RING)


# --- releases


def test_a_release_that_knows_no_item_of_a_user_begins_with_an_empty_state(tmp_path: Path) -> None:
    """Nothing of the state that other weights made is left, though rows keep their shape."""
    strange = random_release(
        tmp_path / "strange",
        [f"other-{i}" for i in range(8)],
        version=2,
        hidden_size=4,
        max_length=RING,
    )
    world = StreamWorld(tmp_path, SETTINGS, [small_release(tmp_path)])
    world.click_all("user", "12")
    world.run()
    assert world.hidden("user").any()

    world.announce(strange)
    world.click("user", "item-3")
    world.run()

    assert newest_list(world).source == "cold_start"
    assert not world.hidden("user").any()

    world.click("user", "other-1")
    world.run()

    model = served(strange)
    state, _ = model.serving.advance(
        model.serving.init_state(1), torch.tensor([model.index_of["other-1"]]), torch.tensor([1])
    )
    np.testing.assert_allclose(world.hidden("user"), state[0].numpy(), atol=STATE_TOLERANCE)


# --- states that no release made


class EndedError(Exception):
    """Stands for the end of the process."""


@pytest.mark.parametrize(
    ("form", "state"),
    [("torch", np.nan), ("torch", np.inf), ("torch", 3e38), ("native", np.nan), ("native", np.inf)],
)
def test_a_forged_state_ends_the_worker_before_a_list_of_it_leaves(
    form: str, state: float, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The user would get empty lists for ever; the line says whose row it is."""
    said = []

    def end(code: ExitCode, message: str, *values: object) -> NoReturn:
        said.append((code, message % values))
        raise EndedError

    monkeypatch.setattr(bad_rows, "end_process", end)
    native = fastest_serving(WorkerSettings(device="cpu")) if form == "native" else None
    world = StreamWorld(tmp_path, SETTINGS, [])
    release = small_release(tmp_path)
    world.holder.offer(prepare(release, device="cpu", top_k=K, ring=RING, native=native))
    for user in ("other", "user"):
        world.click_all(user, "12")
    world.run()
    answers = len(world.topics.records[world.names.recommendations, 0])
    world.forge_row("user", hidden=np.full((2, 8), state, np.complex64))
    world.store.write(0, [(b"user", world.row("user"))], None)
    world.start()
    world.click("other", "item-3")
    world.click("user", "item-3")

    with pytest.raises(EndedError):
        world.run()

    ((code, line),) = said
    assert code == ExitCode.DAMAGED_ROW
    assert "partition 0: the state of user b'user' gives no numbers as scores" in line
    assert len(world.topics.records[world.names.recommendations, 0]) == answers


def test_an_empty_list_for_want_of_items_is_sent(tmp_path: Path) -> None:
    """All items may be withdrawn; that is no fault of a state."""
    world = StreamWorld(tmp_path, SETTINGS, [small_release(tmp_path)])
    for item in ITEMS:
        world.catalogue.apply(item.encode(), b'{"available":false}')
    world.click_all("user", "12")
    world.run()

    assert newest_list(world).items == []


# --- the catalogue


def test_an_item_stays_unavailable_over_a_swap(tmp_path: Path) -> None:
    """The item is left out by its id, whatever place a release gives it."""
    settings = Settings(recommend=RecommendSettings(top_k=len(ITEMS), ring=RING))
    turned = random_release(tmp_path, ITEMS[::-1], version=2, hidden_size=4, max_length=RING)
    world = StreamWorld(tmp_path, settings, [small_release(tmp_path)])
    world.catalogue.apply(b"item-1", b'{"available":false}')
    for release in (None, turned):
        if release is not None:
            world.announce(release)
        world.click("user", "item-3")
        world.run()

        listed = newest_list(world)
        assert {item.item_id for item in listed.items} == {*ITEMS} - {"item-1"}
    assert listed.model_version == 2


def test_what_is_unavailable_is_known_anew_for_each_release_and_change(tmp_path: Path) -> None:
    """The same item has another index in another release, and every word of the topic counts."""
    model = served(small_release(tmp_path))
    turned = served(
        random_release(tmp_path, ITEMS[::-1], version=2, hidden_size=4, max_length=RING)
    )
    catalogue = Catalogue()
    assert catalogue.unavailable(model) is None
    for item in ITEMS[:2]:
        catalogue.apply(item.encode(), None)

        gone = ITEMS[: ITEMS.index(item) + 1]
        for release in (model, turned):
            mask = catalogue.unavailable(release)
            assert mask is not None
            assert mask.nonzero()[:, 0].tolist() == sorted(release.index_of[one] for one in gone)


def test_the_list_of_new_users_follows_the_catalogue(tmp_path: Path) -> None:
    """A hit is one of the list that was in force, without what became unavailable before it."""
    release = small_release(tmp_path)
    model = served(release)
    best = model.release.vocabulary.item_ids[
        int(model.serving.top_k(model.cold_start[None], K, None, None)[1][0, 0]) - 1
    ]
    world = StreamWorld(tmp_path, SETTINGS, [release])
    hits = []
    for user, is_gone in (("first", False), ("second", True)):
        if is_gone:
            world.catalogue.apply(best.encode(), None)
        world.click(user, best)
        world.run()
        hits.append(world.metrics.prequential_hits["model"]._value.get())

    assert hits == [1, 1]


def test_the_list_of_new_users_follows_the_release(tmp_path: Path) -> None:
    """After a swap a new user's first event is held against the new release's list."""
    releases = [small_release(tmp_path)]
    releases.append(random_release(tmp_path, ITEMS, version=2, max_length=RING))
    lists = []
    for model in map(served, releases):
        _, best = model.serving.top_k(model.cold_start[None], K, None, None)
        lists.append({ITEMS[item - 1] for item in best[0].tolist()})
    assert lists[0] != lists[1], "the case is pointless where both recommend the same"
    world = StreamWorld(tmp_path, SETTINGS, releases[:1])
    for number, listed in enumerate(lists):
        if number:
            world.announce(releases[number])
        for item in sorted(listed):
            world.click(f"{number} {item}", item)
        world.run(K)

        assert world.metrics.prequential_hits["model"]._value.get() == (number + 1) * K


# --- what was seen


def test_seen_items_stay_out_of_the_answer_to_a_repeated_event(tmp_path: Path) -> None:
    """Where nothing moves the state, the list is made anew and leaves the ring out all the same."""
    recommend = RecommendSettings(top_k=MORE_THAN_UNSEEN, ring=RING, exclude_seen=True)
    world = StreamWorld(tmp_path, Settings(recommend=recommend), [small_release(tmp_path)])
    for digit in "0123":
        world.click("user", f"item-{digit}", event_id=digit)
    world.run()
    answers = len(world.topics.records[world.names.recommendations, 0])

    world.click("user", "item-3", event_id="3")
    world.run()

    assert len(world.topics.records[world.names.recommendations, 0]) == answers + 1
    made = newest_list(world)
    assert made.history_length == RING
    assert {item.item_id for item in made.items} == set(ITEMS[RING:])


# --- rows of two copies


def test_a_row_is_newer_if_it_is_whole_and_further_or_the_other_is_damaged(tmp_path: Path) -> None:
    """An equal one is not: nothing is to be written for it."""
    processor = StreamWorld(tmp_path, SETTINGS, [small_release(tmp_path)]).processor
    layout = processor._hot.layout
    heads = layout.new_heads(2)
    heads["offset"] = [4, 5]
    older, newer = layout.encode(heads, np.zeros((2, layout.blocks, layout.channels), np.complex64))
    damaged = newer[:-1] + bytes([newer[-1] ^ 1])

    rows, than = zip(
        (newer, older),
        (older, newer),
        (newer, newer),
        (damaged, older),
        (older, damaged),
        (damaged, damaged),
        strict=True,
    )

    assert processor.newer(rows, than) == [True, False, False, False, True, False]


# --- what is counted


def test_repeats_are_counted_and_times_are_in_seconds(tmp_path: Path) -> None:
    """The newest event's time, and how long after its record a list left."""
    world = StreamWorld(tmp_path, SETTINGS, [small_release(tmp_path)])
    for event_id in ("first", "second", "first"):
        world.click("user", "item-1", event_id=event_id)
    records = world.topics.records[world.names.interactions, 0]
    results = world.processor.process([(0, Chunk(records, 0, 3))])

    world.processor.sent(results, 6.0)

    assert world.metrics.events["applied"]._value.get() == 2
    assert world.metrics.events["duplicate"]._value.get() == 1
    assert world.metrics.last_event_timestamp._value.get() == 1001  # as written
    [family] = world.metrics.event_to_recommendation.collect()
    [sum_s] = [sample.value for sample in family.samples if sample.name.endswith("_sum")]
    assert sum_s == pytest.approx(1.0 + 0.999 + 0.998)  # records are of 5 s and a little more


# --- what came late


def test_an_event_is_late_if_it_happened_before_the_one_before_it(tmp_path: Path) -> None:
    """At the same moment is in time; another user's events play no part."""
    world = StreamWorld(tmp_path, SETTINGS, [small_release(tmp_path)])
    for user, time_ms in (("one", 2000), ("one", 2000), ("one", 1999), ("one", 2001), ("two", 5)):
        world.click(user, "item-1", timestamp_ms=time_ms)
        world.run()

    assert world.metrics.late_events._value.get() == 1


# --- what is popular


def test_an_item_that_overtakes_becomes_one_of_the_most_frequent(tmp_path: Path) -> None:
    """The most frequent items are those of now, not of when they were first asked for."""
    model = served(small_release(tmp_path))
    popularity = Popularity()
    popularity.adopt(model)
    first = popularity.top_hashes(2)
    late = next(i for i in range(1, len(ITEMS) + 1) if model.hashes[i] not in first)
    for _ in range(2):
        popularity.add(np.array([late]), model.hashes[[late]], [ITEMS[late - 1]])

    assert model.hashes[late] in popularity.top_hashes(2)
    assert len(popularity.top_hashes(2)) == 2


def test_the_pad_token_is_never_popular() -> None:
    """Not even among items that nobody took: it would have the place of one."""
    ids = ["a", "b", "c"]
    vocabulary = Vocabulary(ids, [0, 0, 0])
    model: Any = SimpleNamespace(
        release=SimpleNamespace(vocabulary=vocabulary), hashes=vocabulary.hashes
    )
    popularity = Popularity()
    popularity.adopt(model)

    assert sorted(popularity.top_hashes(3).tolist()) == sorted(map(item_hash, ids))


def test_made_up_ids_do_not_fill_the_memory(monkeypatch: pytest.MonkeyPatch) -> None:
    """Without a release, of too many ids the more frequent half stays."""
    monkeypatch.setattr("pipeline.worker.popularity.MAX_ITEMS", 10)
    popularity = Popularity()
    ids = ["often", "often", *(f"made-up-{i}" for i in range(10))]
    hashes = np.array([item_hash(one) for one in ids], np.uint64)
    popularity.add(np.zeros(len(ids), np.int64), hashes, ids)

    kept, _, counts = popularity.top_items(100)

    assert len(kept) == 1 + 5
    assert kept[1] == item_hash("often")
    assert counts[1] == 2
