"""The k best items for each user: exact, without ever holding all scores of a large catalogue."""

import math

import torch
from torch import Tensor

from models.shapes import ExcludedItems, TopItems, TopScores, UserOutputs, VocabularyFlags
from models.transfers import to_device

BLOCK_ITEMS = 65_536
"""Items scored at once: 64 MiB of scores for 256 users."""

GROUP_ITEMS = 16
"""Items whose best one stands for them in the first round of `_select`."""

MIN_GROUPED_SCORES = 20_000
"""Below, one round over the scores is faster than two."""


def top_k(
    outputs: UserOutputs,
    weight: Tensor,
    bias: Tensor,
    k: int,
    excluded: ExcludedItems | None,
    unavailable: VocabularyFlags | None,
) -> tuple[TopScores, TopItems]:
    """Return each user's k items of highest score, outputs weight^T + bias, best first.

    Which of several items with equal scores come, and in which order, is not defined, but the same
    for the same input on the same machine.

    Args:
        outputs: the model's outputs, finite.
        weight: float32 (v, d), row 0 the pad token's.
        bias: float32 (v,).
        k: items wanted, at least 1.
        excluded: each user's items to leave out, repetition allowed; 0 means nothing. None: none.
            From the CPU they are checked without waiting for a GPU.
        unavailable: True for items to leave out for every user. None: none.

    Returns:
        Scores and items. Never the pad token nor an item left out: where fewer than k items remain,
        the rest is score -inf, item 0.

    Raises:
        ValueError: k is below 1, or an excluded item is not in 0..v-1.
    """
    check_arguments(weight.shape[0], k, excluded)
    if excluded is not None:
        excluded = to_device(excluded, weight.device)
    if unavailable is not None:
        bias = bias.masked_fill(unavailable, -math.inf)
    return best_items(outputs, weight, bias, k, excluded)


def check_arguments(v: int, k: int, excluded: ExcludedItems | None) -> None:
    """Raise ValueError where `top_k` says so, for v rows of weights."""
    if k < 1:
        msg = f"k must be at least 1, got {k}"
        raise ValueError(msg)
    if excluded is not None and excluded.numel():
        least, most = torch.stack(torch.aminmax(excluded)).cpu().tolist()  # one wait for a GPU
        if least < 0 or most >= v:
            msg = f"excluded items must be in 0..{v - 1}, got {least}..{most}"
            raise ValueError(msg)


def best_items(
    outputs: Tensor, weight: Tensor, bias: Tensor, k: int, excluded: Tensor | None
) -> tuple[Tensor, Tensor]:
    """Do what `top_k` does, unchecked and in any one dtype; a bias of -inf leaves an item out."""
    v = weight.shape[0]
    best = [
        _best_of_block(outputs, weight, bias, k, excluded, first, min(first + BLOCK_ITEMS, v))
        for first in range(0, v, BLOCK_ITEMS)
    ]
    scores = torch.cat([block_scores for block_scores, _ in best], 1)
    items = torch.cat([block_items for _, block_items in best], 1)
    if len(best) > 1:
        scores, places = scores.topk(min(k, scores.shape[1]))
        items = items.gather(1, places)
    missing = k - scores.shape[1]
    if missing > 0:
        scores = torch.nn.functional.pad(scores, (0, missing), value=-math.inf)
        items = torch.nn.functional.pad(items, (0, missing))
    return scores, items.masked_fill_(scores == -math.inf, 0)


def _best_of_block(
    outputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    excluded: Tensor | None,
    first: int,
    end: int,
) -> tuple[Tensor, Tensor]:
    """Return up to k best of the items first..end-1; those of score -inf are none."""
    scores = torch.addmm(bias[first:end], outputs, weight[first:end].t())
    if first == 0:
        scores[:, 0] = -math.inf  # the pad token
    if excluded is not None and end - first == weight.shape[0]:
        scores.scatter_(1, excluded, -math.inf)
    elif excluded is not None:
        columns = excluded - first
        inside = (columns >= 0) & (columns < end - first)
        # The smaller of the score and -inf, or of the score and inf: others' items change nothing.
        struck = torch.where(inside, -math.inf, math.inf).to(scores.dtype)
        scores.scatter_reduce_(1, columns.clamp(0, end - first - 1), struck, "amin")
    scores, columns = _select(scores, k)
    return scores, columns + first


def _select(scores: Tensor, k: int) -> tuple[Tensor, Tensor]:
    """Return the k highest scores of each row (all, if there are fewer) and their columns.

    In two rounds where that is faster: the k groups of columns with the highest maxima hold k
    scores that no column of another group exceeds, so only those groups (and the few columns that
    fill no group) are looked at. Columns j, j + groups, j + 2 groups, ... are one group, so that
    the maxima are taken over contiguous rows.
    """
    rows, width = scores.shape
    groups = width // GROUP_ITEMS
    if rows * width < MIN_GROUPED_SCORES or k > groups // 2:
        return scores.topk(min(k, width))
    grouped = groups * GROUP_ITEMS
    maxima = scores[:, :grouped].view(rows, GROUP_ITEMS, groups).amax(1)
    best = maxima.topk(k, sorted=False).indices  # (u, k)
    members = torch.arange(0, grouped, groups, device=scores.device)
    rest = torch.arange(grouped, width, device=scores.device)
    columns = torch.cat(((best[:, None] + members[:, None]).flatten(1), rest.expand(rows, -1)), 1)
    top, places = scores.gather(1, columns).topk(k)
    return top, columns.gather(1, places)
