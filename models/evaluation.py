"""Full ranking of a held-out item, by one protocol for every method.

The protocol is that of the LRURec authors' code (Yue et al., WSDM 2024, arXiv 2310.02367): the
model sees a user's last `max_length` items, every item of the vocabulary is ranked, the items of
that window are masked (not the whole history), and metrics are means over users (theirs of means
over batches, which differ in the fourth digit: the last batch is smaller). Data in which people
come back for the same item (shops) is ranked without the mask: `mask_window=False`.

Ties never help: a target stands behind everything that scores as high as it does, and a target
whose score is not a number, or masked, is the last of all. A constant model so ranks every target
last, not first.
"""

from collections.abc import Callable, Sequence
from typing import NamedTuple

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.packing import PAD, Indices, PackedHistories, pack_histories
from models.processes import Processes
from models.recommender import Recommender
from models.scan import PackedLayout
from models.shapes import UserItems, UserScores

METRIC_KS = (1, 5, 10, 20, 50)
"""Lengths of the lists that metrics look at."""

BATCH_SCORES = 2**24
"""Scores of one evaluation batch (users x items) at most: 64 MiB in float32."""

BATCH_ROWS = 2**17
"""Positions of one evaluation batch at most: the widest activations are then 128 MiB."""

Scorer = Callable[[PackedHistories], UserScores]
"""Scores every item as the next one after each window; the result is the caller's to change."""


class Holdout(NamedTuple):
    """What was known of some users, and what each did next."""

    histories: list[Indices]
    """One user's items each, oldest first; may be empty."""
    targets: Indices
    """(u,) the item that followed each history."""

    @classmethod
    def of_last_items(cls, sequences: Sequence[Indices]) -> "Holdout":
        """Hold out the last item of every sequence, none of them empty."""
        targets = np.array([sequence[-1] for sequence in sequences], np.int64)
        return cls([sequence[:-1] for sequence in sequences], targets)


class Split(NamedTuple):
    """What trains, what chooses the best weights, and what judges them."""

    train: list[Indices]
    """Every user's items, those held out left off, in the order given."""
    validation: Holdout
    """What chooses."""
    test: Holdout
    """What judges: the best of many measurements on one holdout is better there than elsewhere."""


def leave_one_out(sequences: Sequence[npt.ArrayLike]) -> Split:
    """Split by the authors' rule: a user's last item tests, the one before it validates.

    Users with fewer than three items only train.
    """
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    split = [array for array in arrays if array.size >= 3]
    return Split(
        train=[array[:-2] if array.size >= 3 else array for array in arrays],
        validation=Holdout.of_last_items([array[:-1] for array in split]),
        test=Holdout.of_last_items(split),
    )


def target_ranks(scores: UserScores, targets: UserItems) -> UserItems:
    """Rank each user's target among all items but the pad, 1 the best.

    The rank counts every item that does not score strictly less, the target included: ties, masked
    targets and scores that are not numbers count against it.
    """
    target_scores = scores.gather(1, targets[:, None])
    return scores.shape[1] - 1 - (scores[:, PAD + 1 :] < target_scores).sum(1)


def rank_holdout(
    scorer: Scorer, holdout: Holdout, *, n_items: int, max_length: int, mask_window: bool
) -> Indices:
    """Rank every held-out item by the protocol above, batch after batch.

    Args:
        scorer: the method.
        holdout: users and their targets, indices from 1 to n_items.
        n_items: items of the vocabulary.
        max_length: how much of a history's end the method sees.
        mask_window: whether the items that it sees are out of the ranking.

    Returns:
        (u,) the rank of each user's target.
    """
    users = max(1, min(BATCH_SCORES // (n_items + 1), BATCH_ROWS // max_length))
    ranks = [np.empty(0, np.int64)]
    for start in range(0, len(holdout.histories), users):
        window = pack_histories(holdout.histories[start : start + users], max_length)
        scores = scorer(window)
        if mask_window:
            owners = np.repeat(np.arange(window.lengths.size), window.lengths)
            scores[
                torch.from_numpy(owners).to(scores.device),
                torch.from_numpy(window.items).to(scores.device),
            ] = -torch.inf
        targets = torch.from_numpy(holdout.targets[start : start + users]).to(scores.device)
        ranks.append(target_ranks(scores, targets).cpu().numpy())
    return np.concatenate(ranks)


def ranking_metrics(ranks: Indices, ks: Sequence[int] = METRIC_KS) -> dict[str, float]:
    """Average over users what their targets' ranks are worth.

    Args:
        ranks: (u,) from 1, at least one.
        ks: lengths of the lists to look at.

    Returns:
        `recall@k`: share of targets among the first k; `ndcg@k`: 1 / log2(rank + 1) of those, 0 of
        the others; `mrr`: 1 / rank, wherever the target stands.

    Raises:
        ValueError: there are no users.
    """
    if ranks.size == 0:
        msg = "ranking metrics need at least one user, got none"
        raise ValueError(msg)
    gains = 1 / np.log2(ranks + 1)
    metrics = {"mrr": float(np.mean(1 / ranks))}
    for k in ks:
        metrics[f"recall@{k}"] = float(np.mean(ranks <= k))
        metrics[f"ndcg@{k}"] = float(np.mean(np.where(ranks <= k, gains, 0)))
    return metrics


@torch.inference_mode()
def evaluate(
    recommender: Recommender,
    holdout: Holdout,
    *,
    mask_window: bool = True,
    processes: Processes | None = None,
) -> dict[str, float]:
    """Measure a recommender; only the last position of every window is scored.

    Dropout is off meanwhile, and then as it was before.

    Args:
        recommender: the model.
        holdout: users and their targets, at least one.
        mask_window: whether the items that the model sees are out of the ranking.
        processes: those that share the users and call this alike; None: this one ranks all.

    Returns:
        The metrics of `ranking_metrics`, over all users.

    Raises:
        ValueError: there are no users.
        ProcessLost: another process is gone.
    """
    processes = processes or Processes()
    share = slice(processes.rank, None, processes.count)
    config = recommender.config
    was_training = recommender.training
    recommender.eval()
    try:
        own_ranks = rank_holdout(
            lambda window: recommender.scores(last_outputs(recommender, window)),
            Holdout(holdout.histories[share], holdout.targets[share]),
            n_items=config.n_items,
            max_length=config.max_length,
            mask_window=mask_window,
        )
    finally:
        recommender.train(was_training)
    ranks = np.empty(len(holdout.targets), np.int64)
    for rank, theirs in enumerate(processes.from_all(own_ranks)):
        ranks[rank :: processes.count] = theirs
    return ranking_metrics(ranks)


def last_outputs(recommender: Recommender, window: PackedHistories) -> Tensor:
    """Return the output at each window's last position, float (u, d)."""
    device = recommender.item_embedding.device
    layout = PackedLayout.from_lengths(torch.from_numpy(window.lengths), device)
    items = torch.from_numpy(window.items).to(device)
    last_rows = layout.last_rows[layout.rank]
    return recommender.forward_time_major(items[layout.to_time_major], layout, last_rows)
