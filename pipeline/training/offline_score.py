"""One answer offline, computed twice: by a full scan and by single steps, which must agree."""

from collections.abc import Sequence
from dataclasses import dataclass

import torch
from torch import Tensor

from models.packing import PAD
from models.release import Release, load_recommender
from models.serving.model import ServingModel


@dataclass(frozen=True, kw_only=True)
class OfflineScore:
    """What a release recommends after a history.

    Attributes:
        items: (item id, score), best first; scores are those of the full scan.
        unknown: Items of the history that the release does not know, which it passes over.
        used: Items of the history that it knows.
        source: `model`, or `cold_start` where it knows none.
        max_difference: Largest difference between the scores by scan and by steps, over all items.
    """

    items: tuple[tuple[str, float], ...]
    unknown: tuple[str, ...]
    used: int
    source: str
    max_difference: float


@torch.inference_mode()
def score_history(
    release: Release, history: Sequence[str], *, top: int | None, exclude_last: int = 0
) -> OfflineScore:
    """Score every item as the next one after a history, on the CPU.

    Args:
        release: Any.
        history: Item ids, oldest first.
        top: How many items to give; None: all.
        exclude_last: Leave out the last so many items of the history (counted as workers do: items
            that the release does not know among them).

    Raises:
        models.errors.ReleaseError: The release is damaged, or its scores need not be finite.
    """
    recommender, vocabulary = load_recommender(release), release.vocabulary
    serving = ServingModel(recommender)
    indices = [vocabulary.index_of(item_id) for item_id in history]
    known = torch.tensor([index for index in indices if index], dtype=torch.int64)
    if len(known):
        lengths = torch.tensor([len(known)])
        by_scan = recommender.scores(recommender(known, lengths)[-1:])
        by_steps = serving.scores(_step_by_step(serving, known))
    else:
        by_scan = recommender.scores(recommender(torch.tensor([PAD]), torch.tensor([1])))
        by_steps = serving.scores(serving.cold_start()[None])
    scores = by_scan[0, PAD + 1 :].clone()
    excluded = [index - 1 for index in indices[max(0, len(indices) - exclude_last) :] if index]
    scores[excluded] = -torch.inf
    order = torch.argsort(scores, descending=True, stable=True)
    order = order[: vocabulary.n_items - len(set(excluded))][:top]
    return OfflineScore(
        items=tuple(
            (vocabulary.item_ids[place], score)
            for place, score in zip(order.tolist(), scores[order].tolist(), strict=True)
        ),
        unknown=tuple(
            item_id for item_id, index in zip(history, indices, strict=True) if not index
        ),
        used=len(known),
        source="model" if len(known) else "cold_start",
        max_difference=float((by_scan - by_steps).abs().max()),
    )


def _step_by_step(serving: ServingModel, items: Tensor) -> Tensor:
    """Return the output (1, d) after the last item, moving the state one item at a time."""
    state, one = serving.init_state(1), torch.ones(1, dtype=torch.int64)
    for item in items:
        state, outputs = serving.advance(state, item[None], one)
    return outputs
