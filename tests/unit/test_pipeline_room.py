"""Releases whose rows do not fit: refused before anything is built, and the old one serves on."""

import dataclasses
import resource
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import msgspec
import pytest
import torch
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch
from prometheus_client import CollectorRegistry

from models.config import MAX_LENGTH, ModelConfig
from models.recommender import Recommender
from models.release import Release
from pipeline.engine.sending import MAX_BATCH_BYTES
from pipeline.errors import SwapRejected
from pipeline.metrics import Metrics
from pipeline.settings import RecommendSettings, Settings, WorkerSettings
from pipeline.worker.hot_rows import HotRows
from pipeline.worker.hotswap import Swapper
from pipeline.worker.releases import Announcement
from pipeline.worker.room import MAX_ROW_BYTES, memory_bytes
from pipeline.worker.served_model import prepare
from state.memory import MemoryStore
from state.row import RowLayout
from tests.releases import release_of
from tests.verify_world import ITEMS, RING, K, ListedRecord, StreamWorld, small_release

HOT_ROWS = WorkerSettings().hot_rows


def release_with(folder: Path, version: int = 2, **sizes: int) -> Release:
    """A release of these sizes, else small ones."""
    config = ModelConfig(
        **({"n_items": len(ITEMS), "hidden_size": 4, "state_size": 8, "max_length": 10} | sizes)
    )
    return release_of(folder, Recommender(config), ITEMS, version=version)


@contextmanager
def memory_limited_to(more_bytes: int) -> Iterator[None]:
    """Let this process have only so much more address space."""
    before = resource.getrlimit(resource.RLIMIT_AS)
    pages = int(Path("/proc/self/statm").read_text().split()[0])
    limit = pages * resource.getpagesize() + more_bytes
    resource.setrlimit(resource.RLIMIT_AS, (limit, before[1]))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_AS, before)


@pytest.mark.parametrize("max_length", [50, 200, 1000])
def test_windows_in_use_have_room_at_the_defaults(tmp_path: Path, max_length: int) -> None:
    """No bound comes near to what people train with."""
    release = release_with(tmp_path, max_length=max_length, hidden_size=64, state_size=128)

    model = prepare(release, device="cpu", top_k=10, ring=None, hot_rows=HOT_ROWS)

    assert model.layout.ring == max_length


def test_rows_that_do_not_fit_into_memory_are_refused(tmp_path: Path) -> None:
    """The line has what it would take, and what makes it so much."""
    release = release_with(tmp_path, max_length=MAX_LENGTH)
    hot_rows = memory_bytes() // 1_000_000  # rows of 800 kB

    with pytest.raises(SwapRejected, match=rf"expected {hot_rows} rows \(worker.hot_rows\) .*"):
        prepare(release, device="cpu", top_k=K, ring=None, hot_rows=hot_rows)

    prepare(release, device="cpu", top_k=K, ring=RING, hot_rows=hot_rows)


def test_a_row_that_the_changelog_would_not_take_is_refused(tmp_path: Path) -> None:
    """However few rows there are."""
    release = release_with(tmp_path, hidden_size=1, state_size=120_000, n_blocks=1)

    with pytest.raises(SwapRejected, match=f"rows of at most {MAX_ROW_BYTES} bytes, .* got 9"):
        prepare(release, device="cpu", top_k=K, ring=None)


def test_sizes_that_no_row_can_have_are_refused(tmp_path: Path) -> None:
    """A list of more items than any row keeps, say; no traceback is needed to see to it."""
    with pytest.raises(SwapRejected, match="rows that the changelog takes, got RowLayout"):
        prepare(small_release(tmp_path), device="cpu", top_k=2**24, ring=RING)


def test_the_longest_row_leaves_in_one_batch_with_its_key() -> None:
    """Also beside the longest key that is of any use, and where nothing can be compressed."""
    batch = BatchBuilder(MAX_BATCH_BYTES, DefaultRecordBatch.CODEC_NONE)

    batch.append(timestamp=None, key=bytes(10_000), value=bytes(MAX_ROW_BYTES))

    assert batch.size() <= MAX_BATCH_BYTES


@pytest.mark.parametrize(
    "layout",
    [
        RowLayout(ring=2**20, recommended=2, blocks=1, channels=2),
        RowLayout(ring=3, recommended=2, blocks=4, channels=2**20),
    ],
    ids=["heads", "hidden states"],
)
def test_rows_that_find_no_memory_stay_as_they_were(layout: RowLayout) -> None:
    """A change of layout is whole or has not happened."""
    before = RowLayout(ring=3, recommended=2, blocks=1, channels=2)
    hot = HotRows(before, 1000, torch.device("cpu"), MemoryStore(), lambda *_: None)
    heads, hidden = hot.heads, hot.hidden

    with memory_limited_to(2**30), pytest.raises(MemoryError):
        hot.relayout(layout)

    assert (hot.layout, id(hot.heads), id(hot.hidden)) == (before, id(heads), id(hidden))


def test_a_release_for_which_memory_runs_out_leaves_the_old_one_serving(
    tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """What the check of a release could not know ends no worker either."""
    worker = WorkerSettings(hot_rows=10_000)
    settings = Settings(worker=worker, recommend=RecommendSettings(top_k=K))
    world = StreamWorld(tmp_path, settings, [small_release(tmp_path, 1)])
    world.announce(release_with(tmp_path, max_length=MAX_LENGTH))
    world.click_all("user", "12")

    with memory_limited_to(2**30):
        world.run()

    assert world.holder.current is not None
    assert world.holder.current.version == 1
    assert "release 2 at" in caplog.text
    assert "no memory for 10000 rows" in caplog.text
    assert world.hidden("user").any()


def test_an_announced_release_without_room_is_counted_as_rejected(tmp_path: Path) -> None:
    """One line says why; the worker goes on."""
    release = release_with(tmp_path, max_length=MAX_LENGTH)
    registry = CollectorRegistry()
    worker = WorkerSettings(hot_rows=memory_bytes() // 1_000_000, device="cpu")
    swapper = Swapper(dataclasses.replace(Settings(), worker=worker), Metrics(registry))
    announcement = Announcement(
        version=2,
        location=str(release.path),
        manifest_sha256=release.manifest_sha256,
        created=release.created,
    )

    value = msgspec.json.encode(announcement)
    swapper.hear(ListedRecord("models", 0, 0, 0, b"2", value))

    assert swapper.holder.take_next() is None
    assert registry.get_sample_value("lrurec_model_rejected_version") == 2
