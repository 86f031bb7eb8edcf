"""Small releases with random weights, for tests that need a model but not a good one."""

from collections.abc import Sequence
from pathlib import Path

import torch

from models.config import ModelConfig
from models.recommender import Recommender
from models.release import Release, write_release
from models.vocabulary import Vocabulary


def random_release(
    folder: Path,
    item_ids: Sequence[str],
    *,
    version: int = 1,
    hidden_size: int = 8,
    max_length: int = 10,
) -> Release:
    """Write a release of these items; the version is the seed of its weights."""
    torch.manual_seed(version)
    config = ModelConfig(
        n_items=len(item_ids),
        hidden_size=hidden_size,
        state_size=2 * hidden_size,
        max_length=max_length,
    )
    return release_of(folder, Recommender(config), item_ids, version=version)


def release_of(
    folder: Path, recommender: Recommender, item_ids: Sequence[str], *, version: int = 1
) -> Release:
    """Write a release of a model and its items."""
    return write_release(
        folder,
        version=version,
        recommender=recommender,
        vocabulary=Vocabulary(item_ids, [1] * len(item_ids)),
        metrics={},
        training={},
    )
