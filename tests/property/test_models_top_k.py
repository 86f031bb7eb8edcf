"""Laws of top-k: exact against sorting every score, in one block or many, in one round or two."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.serving import top_k as module
from models.serving.top_k import top_k
from tests.devices import on_each_device


@on_each_device
@given(
    seed=st.integers(0, 2**32),
    users=st.integers(0, 5),
    n_items=st.integers(1, 90),
    k=st.integers(1, 12),
    n_excluded=st.integers(0, 30),
    levels=st.sampled_from([2, 1000]),
    block_items=st.sampled_from([7, 16, 200]),
    group_items=st.sampled_from([1, 4]),
)
def test_top_k_equals_sorting_every_score(
    seed: int,
    users: int,
    n_items: int,
    k: int,
    n_excluded: int,
    levels: int,
    block_items: int,
    group_items: int,
    device: torch.device,
) -> None:
    """Scores equal those of a full sort, many ties or few; items have them, and none is barred."""
    rng = np.random.default_rng(seed)
    # Whole numbers, so that scores are exact and ties are real.
    outputs = rng.integers(-levels, levels, (users, 2))
    weight = rng.integers(-levels, levels, (n_items + 1, 2))
    bias = rng.integers(-levels, levels, n_items + 1)
    excluded = rng.integers(0, n_items + 1, (users, n_excluded))
    unavailable = rng.random(n_items + 1) < 0.2

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(module, "BLOCK_ITEMS", block_items)
        patch.setattr(module, "GROUP_ITEMS", group_items)
        patch.setattr(module, "MIN_GROUPED_SCORES", 8)
        scores, items = top_k(
            torch.tensor(outputs, dtype=torch.float32, device=device),
            torch.tensor(weight, dtype=torch.float32, device=device),
            torch.tensor(bias, dtype=torch.float32, device=device),
            k,
            torch.tensor(excluded, device=device),
            torch.tensor(unavailable, device=device),
        )

    assert scores.shape == items.shape == (users, k)
    every_score = (outputs @ weight.T + bias).astype(float)
    for user in range(users):
        allowed = set(range(1, n_items + 1)) - {*excluded[user]} - {*np.flatnonzero(unavailable)}
        best = sorted((every_score[user, item] for item in allowed), reverse=True)[:k]
        found = items[user, : len(best)].tolist()
        assert scores[user, : len(best)].tolist() == best
        assert every_score[user, found].tolist() == best
        assert len({*found}) == len(found)
        assert {*found} <= allowed
        assert items[user, len(best) :].tolist() == [0] * (k - len(best))
        assert scores[user, len(best) :].tolist() == [-np.inf] * (k - len(best))
