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
from models.serving_graphs import SETTING_UP
from pipeline.errors import SwapRejected
from pipeline.metrics import Metrics
from pipeline.settings import Settings
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


def test_a_release_that_was_announced_by_another_number_is_refused(tmp_path: Path) -> None:
    """Lists name a release by its number alone: it must be the manifest's."""
    with pytest.raises(SwapRejected, match="version 3 was announced, its manifest says 2"):
        open_announced(announced(small_release(tmp_path, 2), 3))


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
    value = msgspec.json.encode(announced(small_release(tmp_path, 2), 2))
    swapper.hear(ListedRecord("models", 0, 0, 0, b"2", value))

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
