"""A worker's micro-batches on a GPU that has no memory: where tensors are, and who waits for whom.

What it computes is tested on the CPU: these are the same lines.
"""

from collections.abc import Sequence
from pathlib import Path
from types import SimpleNamespace

import msgspec
import pytest
import torch
from prometheus_client import CollectorRegistry

from models.config import ModelConfig
from models.recommender import Recommender
from models.release import write_release
from models.serving.graphs import StepGraphs
from models.vocabulary import Vocabulary
from pipeline.engine.chunks import Chunk
from pipeline.metrics import Metrics
from pipeline.settings import RecommendSettings, Settings, WorkerSettings
from pipeline.worker.catalogue import Catalogue
from pipeline.worker.recommend import RecommendationProcessor
from pipeline.worker.served_model import ModelHolder, prepare
from pipeline.worker.users import Users
from state.memory import MemoryStore
from tests.fake_gpu import FakeGpu

K = 3
N_ITEMS = 30
HOT_ROWS = 4
ELSEWHERE = "models.serving.graphs._agree"
ONE_WAIT = ["models.transfers.to_host"]


class Worker:
    """A processor on `cuda`, fed with (user, item) pairs of one partition."""

    def __init__(self, gpu: FakeGpu, folder: Path, *, graphs: StepGraphs | None = None) -> None:
        self.gpu, self.folder = gpu, folder
        self.holder, self.catalogue, self.store = ModelHolder(), Catalogue(), MemoryStore()
        self.store.open(0)
        self.offset = 0
        self.swap(1, hidden_size=4)
        self.holder.take_next()
        self.processor = RecommendationProcessor(
            Settings(
                recommend=RecommendSettings(top_k=K, exclude_seen=True, ring=5),
                worker=WorkerSettings(hot_rows=HOT_ROWS),
            ),
            self.store,
            self.holder,
            self.catalogue,
            Users(),
            Metrics(CollectorRegistry()),
            torch.device("cuda"),
        )
        assert self.processor._ranker._graphs is not None
        if graphs is not None:
            self.processor._ranker._graphs = graphs

    def swap(self, version: int, *, hidden_size: int) -> None:
        """Offer another release."""
        release = write_release(
            self.folder,
            version=version,
            recommender=Recommender(
                ModelConfig(n_items=N_ITEMS, hidden_size=hidden_size, state_size=8, max_length=5)
            ),
            vocabulary=Vocabulary([f"item-{i}" for i in range(N_ITEMS)], [1] * N_ITEMS),
            metrics={},
            training={},
        )
        self.holder.offer(prepare(release, device="cuda", top_k=K, ring=5))

    def process(self, events: Sequence[tuple[int, str]], *, again: int = 0) -> list[str]:
        """Process events, the last `again` of those before them once more; return the waits.

        Those within the choice of the best items are left out, and those that check a new graph.
        """
        first = self.offset
        self.offset += len(events)
        records = [
            SimpleNamespace(
                offset=offset,
                timestamp=2000,
                key=None,
                headers=(),
                value=msgspec.json.encode(
                    {"user_id": f"user-{user}", "item_id": item, "timestamp_ms": 1000 + offset}
                ),
            )
            for offset, (user, item) in enumerate(events, first - again)
        ]
        self.gpu.waits.clear()
        [result] = self.processor.process(
            [(0, Chunk(records, first - again, first - again + len(events)))]
        )
        assert len(result.outputs) == len({user for user, _ in events})
        self.offset -= again
        return [wait for wait in self.gpu.waits if not wait.startswith(ELSEWHERE)]

    def checkpoint(self) -> list[str]:
        """Write what moved to the store; return the waits."""
        self.gpu.waits.clear()
        snapshot = self.processor.snapshot(0)
        self.store.write(0, snapshot.rows, None)
        self.processor.settled(0, snapshot)
        return list(self.gpu.waits)


@pytest.fixture
def gpu(monkeypatch: pytest.MonkeyPatch) -> FakeGpu:
    """A machine with a GPU."""
    gpu = FakeGpu()
    monkeypatch.setattr(torch.cuda, "current_stream", gpu.current_stream)
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    return gpu


@pytest.mark.parametrize("by_graphs", [True, False])
def test_a_micro_batch_waits_for_the_gpu_once(
    by_graphs: bool, gpu: FakeGpu, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """For its lists; whatever users, items and repeats are in it. A checkpoint waits once, too."""
    with gpu:
        worker = Worker(
            gpu, tmp_path, graphs=StepGraphs(lambda body, _: body) if by_graphs else None
        )
        worker.process([(0, "item-0")])  # the cold-start list and the first graph
        batches = [
            [(0, "item-1"), (1, "item-1")],
            [(0, "item-2"), (0, "item-3"), (1, "unheard")],  # one has two, one has none it knows
            [(user, "item-4") for user in range(2, 2 + HOT_ROWS)],  # rows are dropped
            [(user, "item-5") for user in range(2 * HOT_ROWS)],  # and grow, and are read again
            [(9, "unheard")],
        ]
        for events in batches:
            assert worker.process(events) == ONE_WAIT
            assert worker.checkpoint() == ONE_WAIT
        assert worker.process([(0, "item-6"), (9, "item-6")], again=1) == ONE_WAIT

    # Where nothing can be captured, that is one line, and the work is done all the same.
    assert len(caplog.messages) == (0 if by_graphs else 1)


def test_another_release_is_served_without_waiting_for_the_gpu(
    gpu: FakeGpu, tmp_path: Path
) -> None:
    """States are computed anew on the device, of whatever size they are there."""
    with gpu:
        worker = Worker(gpu, tmp_path)
        worker.process([(user, "item-1") for user in range(HOT_ROWS)])
        worker.process([(0, "unheard"), (7, "item-2"), (7, "item-3")])
        for version, hidden_size in ((2, 4), (3, 6)):
            worker.swap(version, hidden_size=hidden_size)
            # The list of newcomers is made once for each release.
            assert worker.process([(100 + version, "item-4")]) == 2 * ONE_WAIT
            assert worker.process([(user, "item-5") for user in (0, 1, 7)]) == ONE_WAIT
            assert worker.checkpoint() == ONE_WAIT


def test_the_gpu_learns_once_what_is_not_available(gpu: FakeGpu, tmp_path: Path) -> None:
    """The catalogue's word goes there without a wait, and changes the list of newcomers once."""
    with gpu:
        worker = Worker(gpu, tmp_path)
        worker.process([(0, "item-1")])
        worker.catalogue.apply(b"item-7", None)
        assert worker.process([(8, "item-2")]) == 2 * ONE_WAIT
        assert worker.process([(9, "item-3")]) == ONE_WAIT
