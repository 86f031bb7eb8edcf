"""Releases that must not come to serve, though every digest of theirs is right."""

from pathlib import Path

import msgspec
import pytest
import torch
from prometheus_client import CollectorRegistry

from models.config import ModelConfig
from models.errors import ReleaseIncompatible
from models.recommender import Recommender
from models.release import Release
from models.serving.graphs import SETTING_UP
from models.serving.model import ServingModel
from pipeline.errors import SwapRejected
from pipeline.metrics import Metrics
from pipeline.settings import Settings, WorkerSettings
from pipeline.worker import hotswap
from pipeline.worker.releases import Announcement, open_announced
from pipeline.worker.served_model import choose_device, prepare
from tests.releases import release_of
from tests.verify_world import ITEMS, RING, K, ListedRecord, small_release


def test_a_release_whose_scores_are_not_finite_is_refused(tmp_path: Path) -> None:
    """Finite weights may still be too large for float32 sums: such a release never serves."""
    config = ModelConfig(n_items=len(ITEMS), hidden_size=4, state_size=8, max_length=RING)
    recommender = Recommender(config)
    with torch.no_grad():
        recommender.item_embedding.fill_(3e38)
    release = release_of(tmp_path, recommender, ITEMS, version=7)

    with pytest.raises(ReleaseIncompatible, match=r"/7/.*: expected weights that give finite"):
        prepare(release, device="cpu", top_k=K, ring=RING)


def test_a_release_that_is_fine_for_its_first_item_alone_is_refused(tmp_path: Path) -> None:
    """All other items lead to NaN, and lists of such users would be empty."""
    config = ModelConfig(n_items=len(ITEMS), hidden_size=8, state_size=16, max_length=RING)
    recommender = Recommender(config)
    with torch.no_grad():
        recommender.item_embedding[:2] = 0.01
        recommender.embedding_norm.weight.fill_(3e38)
    release = release_of(tmp_path, recommender, ITEMS, version=8)

    with pytest.raises(ReleaseIncompatible, match="for every history"):
        prepare(release, device="cpu", top_k=K, ring=RING)


def announced(release: Release, version: int) -> Announcement:
    """What the models topic says of a release, by a number."""
    return Announcement(
        version=version,
        location=str(release.path),
        manifest_sha256=release.manifest_sha256,
        created=release.created,
    )


def record(announcement: Announcement) -> ListedRecord:
    """The record of the models topic that announces it."""
    return ListedRecord("models", 0, 0, 0, None, msgspec.json.encode(announcement))


def test_a_release_that_was_announced_by_another_number_is_refused(tmp_path: Path) -> None:
    """Lists name a release by its number alone: it must be the manifest's."""
    with pytest.raises(SwapRejected, match="version 3 was announced, its manifest says 2"):
        open_announced(announced(small_release(tmp_path, 2), 3))


def swapper_at(
    monkeypatch: pytest.MonkeyPatch, announcements: list[tuple[int, Announcement]]
) -> tuple[hotswap.Swapper, Metrics]:
    """Loads releases where these were announced, by offset."""
    monkeypatch.setattr(hotswap, "read_announcements", lambda settings: iter(announcements))
    metrics = Metrics(CollectorRegistry())
    worker = WorkerSettings(device="cpu", form="torch")
    return hotswap.Swapper(Settings(worker=worker), metrics), metrics


def counts(metrics: Metrics) -> tuple[float, float, float]:
    """Releases loaded and rejected, and the version that was rejected last."""
    swaps = metrics.model_swaps
    figures = (swaps["loaded"], swaps["rejected"], metrics.rejected_version)
    one, other, version = (figure._value.get() for figure in figures)
    return one, other, version


def test_a_start_serves_the_last_release_that_can_be(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """It follows the topic from behind what it read, and what was rejected is told until the next.

    Older ones are not even looked at.
    """
    old, new, next_one = (announced(small_release(tmp_path, n), n) for n in (1, 2, 4))
    gone = msgspec.structs.replace(new, version=3, location=str(tmp_path / "3"))
    swapper, metrics = swapper_at(monkeypatch, [(3, old), (5, new), (7, gone)])

    follow_from = swapper.catch_up()

    assert follow_from == {0: 8}
    assert swapper.holder.current is not None
    assert swapper.holder.current.version == 2
    assert swapper.holder.take_next() is None
    assert counts(metrics) == (1, 1, 3)
    swapper.hear(record(next_one))
    assert swapper.holder.current.version == 2  # until the processor takes it over
    waiting = swapper.holder.take_next()
    assert waiting is swapper.holder.current
    assert waiting is not None
    assert waiting.version == 4
    assert swapper.holder.take_next() is None
    assert counts(metrics) == (2, 1, 0)


def test_a_start_without_a_release_that_can_serve_ends(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Where some were announced; where none was, the first one is waited for."""
    gone = msgspec.structs.replace(
        announced(small_release(tmp_path), 1), location=str(tmp_path / "gone")
    )

    with pytest.raises(SwapRejected, match="of the 2 releases announced there none can be served"):
        swapper_at(monkeypatch, [(3, gone), (5, gone)])[0].catch_up()
    swapper, _ = swapper_at(monkeypatch, [])
    assert swapper.catch_up() == {}
    assert swapper.holder.current is None


def test_whatever_fails_while_a_release_is_loaded_leaves_the_old_one(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it no fault of the release: it is counted, and the worker goes on."""

    def fail(*_: object, **__: object) -> None:
        raise RuntimeError("CUDA error: an illegal memory access was encountered")

    swapper, metrics = swapper_at(monkeypatch, [])
    monkeypatch.setattr(hotswap, "prepare", fail)

    swapper.hear(record(announced(small_release(tmp_path, 2), 2)))

    assert swapper.holder.take_next() is None
    assert counts(metrics) == (0, 1, 2)


def test_every_release_is_served_by_the_form_that_the_start_chose(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Be it announced before or later."""
    native, used = object(), []

    def note(*_: object, native: object, **__: object) -> None:
        used.append(native)
        raise SwapRejected("not this one")

    monkeypatch.setattr(hotswap, "fastest_serving", lambda worker: native)
    monkeypatch.setattr(hotswap, "prepare", note)
    old, new = (announced(small_release(tmp_path, number), number) for number in (1, 2))
    swapper, _ = swapper_at(monkeypatch, [(0, old)])
    with pytest.raises(SwapRejected):
        swapper.catch_up()
    swapper.hear(record(new))

    assert used == [native, native]


def test_a_device_that_gives_no_numbers_serves_no_release(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The weights are fine; it is tried once all the same."""
    scores = ServingModel.scores

    def with_a_nan(model: ServingModel, outputs: torch.Tensor) -> torch.Tensor:
        wrong = scores(model, outputs).clone()
        wrong[1, 3] = torch.nan
        return wrong

    release = small_release(tmp_path)
    prepare(release, device="cpu", top_k=K, ring=RING)
    monkeypatch.setattr(ServingModel, "scores", with_a_nan)

    with pytest.raises(SwapRejected, match=r"release 1 at .*: expected finite scores"):
        prepare(release, device="cpu", top_k=K, ring=RING)


def test_a_gpu_is_set_up_for_a_release_while_no_graph_is_captured(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The lock is held while weights go to the device, and let go where they are refused."""
    held = []

    def refuse(*_: object, **__: object) -> None:
        held.append(SETTING_UP.locked())
        raise SwapRejected("not this one")

    monkeypatch.setattr(hotswap, "prepare", refuse)
    swapper = hotswap.Swapper(Settings(), Metrics(CollectorRegistry()))
    swapper.hear(record(announced(small_release(tmp_path, 2), 2)))

    assert held == [True]
    assert not SETTING_UP.locked()


def test_on_cuda_products_of_float32_are_whole_ones(monkeypatch: pytest.MonkeyPatch) -> None:
    """Whatever the environment told torch before."""
    monkeypatch.setattr(torch.cuda, "device_count", lambda: 1)
    torch.set_float32_matmul_precision("high")
    try:
        choose_device("cuda")
        assert torch.get_float32_matmul_precision() == "highest"
    finally:
        torch.set_float32_matmul_precision("highest")
