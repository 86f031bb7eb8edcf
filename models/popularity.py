"""The baseline without a model: what everybody takes, ranked as `models.evaluation` ranks."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt
import torch

from models.evaluation import Holdout, Scorer, rank_holdout, ranking_metrics
from models.packing import PAD, Indices, concatenate


def item_counts(sequences: Sequence[npt.ArrayLike], n_items: int) -> Indices:
    """Count every item's events, (n_items + 1,); nothing counts for the pad."""
    events, _ = concatenate(sequences)
    return np.bincount(events, minlength=n_items + 1)


def popularity_order(counts: Indices) -> Indices:
    """List all items but the pad, most events first; of equals the lower index first."""
    return np.argsort(-counts[PAD + 1 :], kind="stable") + PAD + 1


def popularity_scorer(counts: Indices) -> Scorer:
    """Score every item by its place in `popularity_order`, the same for every user.

    No two places are equal, so that the protocol's rule for ties takes nothing from the baseline.
    """
    order = popularity_order(counts)
    row = np.full(counts.size, -np.inf, np.float32)  # whole numbers: exact up to 2^24 items
    row[order] = -np.arange(order.size)
    scores = torch.from_numpy(row)
    return lambda window: scores.repeat(window.lengths.size, 1)


def evaluate_popularity(
    counts: Indices, holdout: Holdout, *, max_length: int, mask_window: bool = True
) -> dict[str, float]:
    """Measure the baseline as `models.evaluation.evaluate` measures a recommender.

    Args:
        counts: (n_items + 1,) events of each item in training.
        holdout: users and their targets.
        max_length: the window whose items are masked.
        mask_window: whether they are.

    Returns:
        The metrics of `ranking_metrics`.
    """
    ranks = rank_holdout(
        popularity_scorer(counts),
        holdout,
        n_items=counts.size - 1,
        max_length=max_length,
        mask_window=mask_window,
    )
    return ranking_metrics(ranks)
