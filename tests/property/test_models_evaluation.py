"""Laws of full ranking over random scores, histories and batch sizes."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.config import ModelConfig
from models.evaluation import BATCH_ROWS, Holdout, last_outputs, rank_holdout, ranking_metrics
from models.packing import PAD, PackedHistories, pack_histories
from models.recommender import Recommender

N_ITEMS = 6
indices = st.integers(1, N_ITEMS)
users = st.lists(st.tuples(st.lists(indices, max_size=8), indices), min_size=1, max_size=6)
few_values = st.lists(
    st.sampled_from([-1.0, 0.0, 0.5]), min_size=(N_ITEMS + 1) ** 2, max_size=(N_ITEMS + 1) ** 2
)
"""A score for each (last item, next item), with many ties."""
OUTPUT_DIFFERENCE = 1e-5
"""Between float32 outputs of one window, alone and among others; outputs are of the order of 1."""


def table_scorer(table: Tensor, window: PackedHistories) -> Tensor:
    """Score by the last item of each window."""
    last = np.cumsum(window.lengths) - 1
    return table[torch.from_numpy(window.items[last])]


@given(users, few_values, st.integers(1, 8), st.booleans())
def test_ranks_are_those_of_a_list_sorted_against_the_target(
    users: list[tuple[list[int], int]], values: list[float], max_length: int, mask_window: bool
) -> None:
    """Sort each user's items by hand, the target behind its equals, masked items at the end."""
    table = torch.tensor(values).view(N_ITEMS + 1, N_ITEMS + 1)
    holdout = Holdout(
        [np.array(history, np.int64) for history, _ in users], np.array([t for _, t in users])
    )

    ranks = rank_holdout(
        lambda window: table_scorer(table, window),
        holdout,
        n_items=N_ITEMS,
        max_length=max_length,
        mask_window=mask_window,
    )

    for (history, target), rank in zip(users, ranks, strict=True):
        window = history[-max_length:]
        scores = table[window[-1] if window else PAD].tolist()
        if mask_window:
            scores = [-np.inf if item in window else s for item, s in enumerate(scores)]
        ranking = sorted(range(1, N_ITEMS + 1), key=lambda i: (-scores[i], i == target))
        assert rank == 1 + ranking.index(target)


@given(users, few_values, st.booleans())
def test_ranks_do_not_depend_on_how_users_are_batched(
    users: list[tuple[list[int], int]], values: list[float], mask_window: bool
) -> None:
    """One user a batch (a window as long as a batch may be) and all in one give the same."""
    table = torch.tensor(values).view(N_ITEMS + 1, N_ITEMS + 1)
    holdout = Holdout(
        [np.array(history, np.int64) for history, _ in users], np.array([t for _, t in users])
    )
    batches: list[int] = []

    def scorer(window: PackedHistories) -> Tensor:
        batches.append(window.lengths.size)
        return table_scorer(table, window)

    alone, together = (
        rank_holdout(
            scorer, holdout, n_items=N_ITEMS, max_length=max_length, mask_window=mask_window
        )
        for max_length in (BATCH_ROWS, 8)
    )

    assert batches == [1] * len(users) + [len(users)]
    assert alone.tolist() == together.tolist()


@given(st.lists(st.integers(1, 100), min_size=1), st.integers(1, 99))
def test_metrics_grow_with_k_and_bound_each_other(ranks: list[int], k: int) -> None:
    """A longer list never lowers recall or NDCG; NDCG never exceeds recall; all lie in [0, 1]."""
    metrics = ranking_metrics(np.array(ranks), ks=(k, k + 1))

    assert 0 <= metrics[f"ndcg@{k}"] <= metrics[f"recall@{k}"] <= metrics[f"recall@{k + 1}"] <= 1
    assert metrics[f"ndcg@{k}"] <= metrics[f"ndcg@{k + 1}"]
    assert 0 < metrics["mrr"] <= 1


@given(st.lists(st.lists(indices, max_size=8), min_size=1, max_size=6), st.integers(1, 8))
def test_each_window_has_the_output_that_it_has_alone(
    histories: list[list[int]], max_length: int
) -> None:
    """Windows of any lengths in any order are told apart: no user gets what another did."""
    config = ModelConfig(n_items=N_ITEMS, hidden_size=8, state_size=4)
    recommender = Recommender(config, torch.Generator().manual_seed(3)).eval()

    with torch.no_grad():
        together = last_outputs(recommender, pack_histories(histories, max_length))
        alone = [
            recommender(torch.tensor(window), torch.tensor([len(window)]))[-1]
            for window in (history[-max_length:] or [PAD] for history in histories)
        ]

    torch.testing.assert_close(together, torch.stack(alone), rtol=0, atol=OUTPUT_DIFFERENCE)
