"""Whether a new release may serve: held against popularity and the release that serves.

All three are ranked on the same held-out items, each with the items that it knows: what a release
does not know is left out of the histories, and as a target it is a miss.
"""

import logging
from collections.abc import Mapping, Sequence

import numpy as np
import torch

from models.evaluation import Holdout, last_outputs, rank_holdout, ranking_metrics
from models.release import Release, load_recommender
from models.training.result import SELECTION_METRIC
from models.vocabulary import Vocabulary
from pipeline.errors import SwapRejected
from pipeline.worker.releases import Announcement, open_announced

_log = logging.getLogger(__name__)

MISS_RANK = 2**60
"""Rank of what a release does not know: behind every list, however few items there are."""


def serving_release(announcements: Sequence[Announcement]) -> Release | None:
    """Return the release that a worker starting now would serve; None where none can be.

    Args:
        announcements: Those of the models topic, oldest first.
    """
    for announcement in reversed(announcements):
        try:
            return open_announced(announcement)
        except SwapRejected as error:
            _log.warning("%s; a new release is not held against it", error)
    return None


def evaluate_release(
    release: Release,
    vocabulary: Vocabulary,
    holdout: Holdout,
    *,
    mask_window: bool,
    device: torch.device,
) -> dict[str, float]:
    """Rank held-out items by a release.

    Args:
        release: The release.
        vocabulary: What the indices of `holdout` stand for.
        holdout: Users and what each did next; at least one.
        mask_window: Whether the items that the model sees are out of the ranking.
        device: Where to compute.

    Returns:
        The metrics of `models.evaluation.ranking_metrics`.

    Raises:
        models.errors.ReleaseError: The release is damaged.
    """
    recommender = load_recommender(release).to(device)
    config = release.config
    theirs = release.vocabulary.indices_of_hashes(vocabulary.hashes)
    targets = theirs[holdout.targets]
    known = np.flatnonzero(targets)
    histories = [theirs[holdout.histories[user]] for user in known.tolist()]
    ranks = np.full(len(targets), MISS_RANK)
    with torch.inference_mode():
        ranks[known] = rank_holdout(
            lambda window: recommender.scores(last_outputs(recommender, window)),
            Holdout([history[history > 0] for history in histories], targets[known]),
            n_items=config.n_items,
            max_length=config.max_length,
            mask_window=mask_window,
        )
    return ranking_metrics(ranks)


def why_refused(
    model: Mapping[str, float],
    popularity: Mapping[str, float],
    serving: Mapping[str, float] | None,
    *,
    max_drop: float,
) -> str | None:
    """Return why a release must not serve; None where it may.

    Where a release serves, the new one may lie below its Recall@10 by at most the given share of
    it. Where none does, workers recommend what is popular: the new one may not lie below that.

    Args:
        model: Metrics of the new release.
        popularity: Metrics of the baseline.
        serving: Metrics of the release that serves, if any.
        max_drop: Largest share of the serving release's Recall@10 that may be lost.
    """
    recall = model[SELECTION_METRIC]
    if serving is None:
        least, what = popularity[SELECTION_METRIC], "popularity's"
    else:
        least = serving[SELECTION_METRIC] * (1 - max_drop)
        what = f"{1 - max_drop:.0%} of the serving release's {serving[SELECTION_METRIC]:.4f}"
    if recall >= least:
        return None
    return f"Recall@10 on held-out items: expected at least {least:.4f}, {what}; got {recall:.4f}"
