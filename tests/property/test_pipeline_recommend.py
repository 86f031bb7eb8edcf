"""The micro-batch processor against plain lists: any batches, repeats, restarts and releases."""

import itertools
from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace
from typing import Any

import hypothesis
import msgspec
import numpy as np
import pytest
import torch
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from models.config import ModelConfig
from models.recommender import Recommender
from models.release import write_release
from models.serving.graphs import StepGraphs
from models.vocabulary import Vocabulary, item_hash
from pipeline.engine.chunks import Chunk
from pipeline.engine.processor import PartitionResult
from pipeline.metrics import Metrics
from pipeline.settings import RecommendSettings, Settings, WorkerSettings
from pipeline.worker.catalogue import Catalogue
from pipeline.worker.recommend import RecommendationProcessor
from pipeline.worker.served_model import ModelHolder, ServedModel, prepare
from pipeline.worker.users import Users
from pipeline.worker.wire import Recommendation
from state.memory import MemoryStore
from state.row import EVENT_IDS, ring_items
from tests.devices import DEVICES, capture_on
from tests.releases import release_of

# float32 sums of a handful of steps in another order.
STATE_TOLERANCE = 1e-5
K = 3
RING = 4
KNOWN = [f"item-{i}" for i in range(8)]
ITEMS = [*KNOWN, "unheard-1", "unheard-2"]

_EVENT = st.tuples(
    st.integers(0, 1),  # partition
    st.integers(0, 3),  # user
    st.sampled_from(ITEMS),
    st.one_of(st.none(), st.sampled_from(["a", "b", "c"])),  # event id
)


@pytest.fixture(scope="module", params=DEVICES, ids=str)
def releases(
    request: pytest.FixtureRequest, tmp_path_factory: pytest.TempPathFactory
) -> list[ServedModel]:
    """Two releases of the same items with other weights, the second of another shape."""
    folder: Path = tmp_path_factory.mktemp("releases")
    served = []
    for version, (hidden, n_items) in enumerate(((4, 8), (6, 7)), 1):
        torch.manual_seed(version)
        config = ModelConfig(
            n_items=n_items, hidden_size=hidden, state_size=2 * hidden, max_length=RING
        )
        release = write_release(
            folder,
            version=version,
            recommender=Recommender(config),
            vocabulary=Vocabulary(KNOWN[:n_items], [1] * n_items),
            metrics={},
            training={},
        )
        served.append(prepare(release, device=str(request.param), top_k=K, ring=RING))
    return served


class World:
    """A log of records and a processor that reads it, restarted at will from what was settled.

    With `graphs` it steps as it does on a GPU. The model says on which device, or else `device`.
    """

    def __init__(
        self,
        model: ServedModel | None,
        *,
        exclude_seen: bool = False,
        transactional: bool = False,
        graphs: bool = False,
        device: torch.device = DEVICES[0],
    ) -> None:
        self.graphs = graphs
        self.device = device if model is None else model.serving.device
        self.store = MemoryStore()
        for partition in (0, 1):
            self.store.open(partition)
        self.settings = Settings(
            recommend=RecommendSettings(
                top_k=K, exclude_seen=exclude_seen, ring=RING, transactional=transactional
            ),
            worker=WorkerSettings(hot_rows=3),
        )
        self.holder = ModelHolder(model)
        self.catalogue = Catalogue()
        self.users: list[Any] = []  # the records of the users topic
        self.log: dict[int, list[Any]] = {0: [], 1: []}
        self.start()

    def start(self, *, is_deaf: bool = False) -> None:
        self.metrics = Metrics(CollectorRegistry())
        self.hearing = Users()
        for record in [] if is_deaf else self.users:
            self.hearing.hear(record)
        self.processor = RecommendationProcessor(
            self.settings,
            self.store,
            self.holder,
            self.catalogue,
            self.hearing,
            self.metrics,
            self.device,
        )
        graphs = StepGraphs(capture_on(self.device)) if self.graphs else None
        self.processor._ranker._graphs = graphs

    def produce(
        self,
        partition: int,
        user: str,
        item: str,
        event_id: str | None = None,
        *,
        timestamp_ms: int | None = None,
        record_ms: int = 2000,
    ) -> None:
        offset = len(self.log[partition])
        happened_ms = 1000 + offset if timestamp_ms is None else timestamp_ms
        event = {"user_id": user, "item_id": item, "timestamp_ms": happened_ms}
        if event_id is not None:
            event["event_id"] = event_id
        self.log[partition].append(
            SimpleNamespace(
                offset=offset,
                timestamp=record_ms,
                key=None,
                value=msgspec.json.encode(event),
                headers=(),
            )
        )

    def command(self, user: str, record_ms: int, **command: Any) -> None:
        """Append a record of the users topic, which the processor hears at once."""
        value = msgspec.json.encode(command)
        record = SimpleNamespace(key=user.encode(), timestamp=record_ms, value=value)
        self.users.append(record)
        self.hearing.hear(record)

    def process(self, partition: int, start: int, end: int) -> list[PartitionResult]:
        records = self.log[partition][start:end]
        return self.processor.process([(partition, Chunk(records, start, end))]) if records else []

    def settle(self) -> None:
        for partition in (0, 1):
            self.settle_one(partition)

    def settle_one(self, partition: int) -> Sequence[tuple[bytes, bytes | None]]:
        """Take a checkpoint of a partition, and return its rows."""
        snapshot = self.processor.snapshot(partition)
        self.store.write(partition, snapshot.rows, None)
        self.processor.settled(partition, snapshot)
        return snapshot.rows

    def rows(self) -> dict[tuple[int, bytes], tuple[Any, Any]]:
        """Every settled row: head and hidden state."""
        layout = self.processor._hot.layout
        rows = {}
        for partition in (0, 1):
            for key, row in self.store.scan(partition):
                decoded = layout.decode([row])
                assert not decoded.damaged[0]
                rows[partition, key] = decoded.heads[0], decoded.hidden[0]
        return rows


def oracle(log: list[Any], end: int) -> dict[bytes, list[tuple[int, str]]]:
    """What counts of a partition's records: (offset, item) by user, repeated event ids left out."""
    applied: dict[bytes, list[tuple[int, str]]] = {}
    recent: dict[bytes, list[str]] = {}
    for record in log[:end]:
        event = msgspec.json.decode(record.value)
        user, event_id = event["user_id"].encode(), event.get("event_id")
        if event_id is not None:
            if event_id in recent.get(user, [])[-8:]:
                continue
            recent.setdefault(user, []).append(event_id)
        applied.setdefault(user, []).append((record.offset, event["item_id"]))
    return applied


def state_of(model: ServedModel, items: list[str]) -> Any:
    """The state after a scan of all items that the release knows, at once."""
    known = [index for item in items if (index := model.index_of.get(item, 0))]
    state = model.serving.init_state(1)
    if known:
        state, _ = model.serving.advance(state, torch.tensor(known), torch.tensor([len(known)]))
    return state[0].cpu().numpy()


@pytest.mark.parametrize("graphs", [False, True])
@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(
    events=st.lists(_EVENT, min_size=1, max_size=40),
    cuts=st.lists(
        st.tuples(st.integers(1, 6), st.sampled_from(["settle", "restart", "swap", "refresh", ""])),
        min_size=12,
        max_size=12,
    ),
)
def test_rows_hold_every_event_once_whatever_is_read_again(
    releases: list[ServedModel],
    graphs: bool,
    events: list[tuple[int, int, str, str | None]],
    cuts: list[tuple[int, str]],
) -> None:
    """After batches of any size, crashes and swaps, rows are what the log alone says."""
    world = World(releases[0], graphs=graphs)
    for partition, user, item, event_id in events:
        world.produce(partition, f"user-{user}", item, event_id)
    at, committed = {0: 0, 1: 0}, {0: 0, 1: 0}
    swaps = itertools.cycle([releases[1], releases[0]])
    model = releases[0]
    # In the end, enough steps to read everything without a further crash.
    for size, action in [*cuts, *[(10, "")] * 10]:
        for partition in (0, 1):
            end = min(at[partition] + size, len(world.log[partition]))
            results = world.process(partition, at[partition], end)
            for result in results:
                assert [key for key, _ in result.outputs] == list(
                    dict.fromkeys(
                        msgspec.json.decode(record.value)["user_id"].encode()
                        for record in world.log[partition][at[partition] : end]
                    )
                )
            at[partition] = end
        if action == "settle":
            world.settle()
            committed = dict(at)
        elif action == "restart":  # a crash: what was not settled is read again, and a little more
            world.start()
            at = {partition: max(0, offset - size) for partition, offset in committed.items()}
        elif action == "swap":
            model = next(swaps)
            world.holder.offer(model)
        elif action == "refresh":
            world.processor.refresh(())
    world.settle()

    rows = world.rows()
    expected = {
        (partition, user): applied
        for partition in (0, 1)
        for user, applied in oracle(world.log[partition], at[partition]).items()
    }
    assert rows.keys() == expected.keys()
    for at_key, (head, hidden) in rows.items():
        applied = expected[at_key]
        items = [item for _, item in applied]
        assert head["event_count"] == len(applied)
        assert head["offset"] == applied[-1][0]
        ring, lengths = ring_items(np.array([head]))
        assert ring[0, : lengths[0]].tolist() == [item_hash(item) for item in items[-RING:]]
        made_by = next((m for m in releases if m.weights_id == head["weights_id"]), None)
        if made_by is None:  # moved to the layout of another release and not used since
            assert head["weights_id"] == 0
        else:
            truth = state_of(made_by, items[head["started_at"] :])
            np.testing.assert_allclose(hidden, truth, atol=STATE_TOLERANCE)
    assert world.metrics.stale_states_served._value.get() == 0


@pytest.mark.parametrize("exclude_seen", [False, True])
@hypothesis.given(
    batches=st.lists(st.lists(st.sampled_from(ITEMS), min_size=1, max_size=16), max_size=6)
)
def test_lists_are_what_a_full_scan_would_rank(
    releases: list[ServedModel], exclude_seen: bool, batches: list[list[str]]
) -> None:
    """The recommendation after many steps and batches is the top-K of one scan over the history."""
    model = releases[0]
    world = World(model, exclude_seen=exclude_seen)
    items: list[str] = []
    for batch in batches:
        at = len(items)
        for item in batch:
            world.produce(0, "user", item)
        items += batch
        [result] = world.process(0, at, len(items))
        [(_, value)] = result.outputs
        made = msgspec.json.decode(value, type=Recommendation)

        known = [index for item in items if (index := model.index_of.get(item, 0))]
        if known:
            _, outputs = model.serving.advance(
                model.serving.init_state(1), torch.tensor(known), torch.tensor([len(known)])
            )
            scores = model.serving.scores(outputs[-1:])[0].cpu().clone()
        else:
            scores = model.serving.scores(model.cold_start[None])[0].cpu().clone()
        scores[0] = -torch.inf
        if exclude_seen:
            for item in items[-RING:]:
                scores[model.index_of.get(item, 0)] = -torch.inf
        listed = [model.index_of[item.item_id] for item in made.items]
        assert len(set(listed)) == K
        # By scores: of two that differ in their last bits either may come first.
        made_scores = [item.score for item in made.items]
        np.testing.assert_allclose(made_scores, torch.topk(scores, K).values, atol=1e-5)
        np.testing.assert_allclose(made_scores, scores[listed], atol=1e-5)
        assert made.source == ("model" if known else "cold_start")
        assert made.history_length == len(items)
        assert made.event.offset == result.newest_offset == len(items) - 1
        assert made.model_version == 1


@hypothesis.given(items=st.lists(st.sampled_from(ITEMS), min_size=1, max_size=8))
def test_after_a_swap_a_list_is_made_of_what_the_row_remembers(
    releases: list[ServedModel], items: list[str]
) -> None:
    """An event that moves nothing is answered by a scan of the ring with the new weights."""
    world, model = World(releases[0]), releases[1]
    for item in (*items, "unheard-3"):
        world.produce(0, "user", item)
    world.process(0, 0, len(items))
    world.holder.offer(model)

    [result] = world.process(0, len(items), len(items) + 1)

    outputs = model.cold_start[None]
    if known := [index for item in items[-RING:] if (index := model.index_of.get(item, 0))]:
        _, outputs = model.serving.advance(
            model.serving.init_state(1), torch.tensor(known), torch.tensor([len(known)])
        )
    best = torch.topk(model.serving.scores(outputs[-1:])[0, 1:].cpu(), K).values
    made = msgspec.json.decode(result.outputs[0][1], type=Recommendation)
    np.testing.assert_allclose([item.score for item in made.items], best, atol=1e-5)
    assert made.source == ("model" if known else "cold_start")
    assert made.model_version == 2


def test_an_unavailable_item_is_left_out_and_k_is_filled(releases: list[ServedModel]) -> None:
    """The catalogue's word counts from the next batch on, and lists stay full."""
    world = World(releases[0])
    world.produce(0, "user", "item-1")
    world.produce(0, "user", "item-2")
    [result] = world.process(0, 0, 1)
    first = msgspec.json.decode(result.outputs[0][1], type=Recommendation).items[0].item_id

    world.catalogue.apply(first.encode(), b'{"title":"gone","available":false}')
    [result] = world.process(0, 1, 2)

    listed = [
        i.item_id for i in msgspec.json.decode(result.outputs[0][1], type=Recommendation).items
    ]
    assert first not in listed
    assert len(listed) == K


@pytest.mark.parametrize("exclude_seen", [False, True])
def test_an_unavailable_item_is_left_out_of_what_is_popular(exclude_seen: bool) -> None:
    """Without a release the catalogue rules as well, be an item known to any release or not."""
    world = World(None, exclude_seen=exclude_seen)
    popular = ["item-1", "unheard-1", *(f"item-{i}" for i in range(2, K + 2))]
    for item in popular:
        world.produce(0, "other", item)
    world.produce(0, "user", "item-1")
    world.catalogue.apply(b"unheard-1", None)

    [result] = world.process(0, 0, len(popular) + 1)

    lists = {
        made.user_id: [item.item_id for item in made.items]
        for _, value in result.outputs
        for made in [msgspec.json.decode(value, type=Recommendation)]
    }
    assert "unheard-1" not in lists["user"] + lists["other"]
    assert len(lists["user"]) == K


def test_without_a_release_the_answer_is_what_is_popular(releases: list[ServedModel]) -> None:
    """Until a release comes the source is `fallback`; then the remembered items make the state."""
    world = World(None, device=releases[0].serving.device)
    for item in ("item-3", "item-3", "item-1", "unheard-1"):
        world.produce(0, "user", item)
    [result] = world.process(0, 0, 3)
    made = msgspec.json.decode(result.outputs[0][1], type=Recommendation)
    assert (made.source, made.model_version) == ("fallback", 0)
    assert [item.item_id for item in made.items] == ["item-3", "item-1"]

    world.holder.offer(releases[0])
    [result] = world.process(0, 3, 4)
    world.settle()

    made = msgspec.json.decode(result.outputs[0][1], type=Recommendation)
    assert (made.source, made.model_version) == ("model", 1)
    head, hidden = world.rows()[0, b"user"]
    items = ["item-3", "item-3", "item-1", "unheard-1"]
    np.testing.assert_allclose(hidden, state_of(releases[0], items), atol=STATE_TOLERANCE)
    assert head["started_at"] == 0


def test_a_state_that_does_not_move_with_its_items_is_none(tmp_path: Path) -> None:
    """Without a release, that is, be the row of just the shape of one without a state."""
    config = ModelConfig(
        n_items=len(KNOWN), hidden_size=4, state_size=1, n_blocks=1, max_length=RING
    )
    model = prepare(
        release_of(tmp_path, Recommender(config), KNOWN), device="cpu", top_k=K, ring=RING
    )
    world = World(model)
    items = ["item-3", "item-1", "item-2"]
    for item in items:
        world.produce(0, "user", item)
    world.process(0, 0, 1)
    world.settle()

    world.holder = ModelHolder()
    world.start()
    world.process(0, 1, 2)
    world.settle()
    head, hidden = world.rows()[0, b"user"]
    assert not hidden.any()
    assert [head[name] for name in ("weights_id", "model_version", "last_item")] == [0, 0, 0]

    world.holder.offer(model)
    world.process(0, 2, 3)
    world.settle()
    _, hidden = world.rows()[0, b"user"]
    np.testing.assert_allclose(hidden, state_of(model, items), atol=STATE_TOLERANCE)


@hypothesis.given(
    event_ids=st.lists(st.integers(0, 12), min_size=1, max_size=40), size=st.integers(1, 40)
)
@hypothesis.example(event_ids=[*range(1, EVENT_IDS + 1), 1], size=3)
@hypothesis.example(event_ids=[*range(1, EVENT_IDS + 2), 1], size=3)
@hypothesis.example(event_ids=[*range(1, EVENT_IDS + 2), 2], size=3)
@hypothesis.example(event_ids=[*range(1, EVENT_IDS + 2), EVENT_IDS - 2], size=3)
def test_an_id_is_known_as_long_as_it_is_among_the_last_ones(
    event_ids: list[int], size: int
) -> None:
    """Whatever the batches, and over restarts: the row remembers ids in the order of its events."""
    world = World(None)
    for event_id in event_ids:
        world.produce(0, "user", "item-0", f"id-{event_id}" if event_id else None)

    for start in range(0, len(event_ids), size):
        world.process(0, start, start + size)
        world.settle()
        world.start()

    head, _ = world.rows()[0, b"user"]
    assert head["event_count"] == len(oracle(world.log[0], len(event_ids))[b"user"])


@pytest.mark.parametrize("graphs", [False, True])
def test_hits_do_not_depend_on_how_records_are_batched(
    releases: list[ServedModel], graphs: bool
) -> None:
    """Prequential counts are those of the list before each event, one by one or all at once."""
    drawn = np.random.default_rng(3).integers(0, len(ITEMS), 60).tolist()
    counts = []
    for sizes in ([60], [1] * 60, [7, 13, 40]):
        world = World(releases[0], graphs=graphs)
        for i in drawn:
            world.produce(0, f"user-{i % 3}", ITEMS[i])
        at = 0
        for size in sizes:
            world.process(0, at, at + size)
            at += size
        hits = world.metrics.prequential_hits
        counts.append([hits[m]._value.get() for m in ("model", "repeat_last")])
        assert world.metrics.prequential_events._value.get() == 60

    assert counts[0] == counts[1] == counts[2]
    assert counts[0][0] > 0
