"""Releases that must not come to serve, though every digest of theirs is right."""

from pathlib import Path

import pytest
import torch

from models.config import ModelConfig
from models.recommender import Recommender
from pipeline.errors import SwapRejected
from pipeline.worker.releases import Announcement, open_announced
from pipeline.worker.served_model import prepare
from tests.releases import release_of
from tests.verify_world import ITEMS, RING, K, small_release


def test_a_release_whose_scores_are_not_finite_is_refused(tmp_path: Path) -> None:
    """Finite weights may still be too large for float32 sums: such a release never serves."""
    config = ModelConfig(n_items=len(ITEMS), hidden_size=4, state_size=8, max_length=RING)
    recommender = Recommender(config)
    with torch.no_grad():
        recommender.item_embedding.fill_(3e38)
    release = release_of(tmp_path, recommender, ITEMS, version=7)

    with pytest.raises(SwapRejected, match=r"release 7 at .*: expected finite scores"):
        prepare(release, device="cpu", top_k=K, ring=RING)


def test_a_release_that_was_announced_by_another_number_is_refused(tmp_path: Path) -> None:
    """Lists name a release by its number alone: it must be the manifest's."""
    release = small_release(tmp_path, 2)
    announcement = Announcement(
        version=3,
        location=str(release.path),
        manifest_sha256=release.manifest_sha256,
        created=release.created,
    )

    with pytest.raises(SwapRejected, match="version 3 was announced, its manifest says 2"):
        open_announced(announcement)
