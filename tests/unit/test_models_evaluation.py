"""Splits, ranks, masks and metrics on cases small enough to be counted by hand."""

import math

import numpy as np
import pytest
import torch

from models.config import ModelConfig
from models.evaluation import (
    Holdout,
    evaluate,
    leave_one_out,
    rank_holdout,
    ranking_metrics,
    target_ranks,
)
from models.packing import PAD
from models.popularity import evaluate_popularity, item_counts, popularity_order
from models.recommender import Recommender

NAN = math.nan


@pytest.fixture
def recommender() -> Recommender:
    """A small untrained model with dropout, in training mode."""
    config = ModelConfig(n_items=20, hidden_size=8, state_size=4, max_length=5, dropout=0.5)
    return Recommender(config, torch.Generator().manual_seed(5))


def test_leave_one_out_tests_on_the_last_item_and_validates_on_the_one_before() -> None:
    """Users with three items or more are split, the others only train, in their order."""
    split = leave_one_out([[1, 2, 3, 4], [5, 6], [7, 8, 9], []])

    assert [part.tolist() for part in split.train] == [[1, 2], [5, 6], [7], []]
    assert [part.tolist() for part in split.validation.histories] == [[1, 2], [7]]
    assert split.validation.targets.tolist() == [3, 8]
    assert [part.tolist() for part in split.test.histories] == [[1, 2, 3], [7, 8]]
    assert split.test.targets.tolist() == [4, 9]


@pytest.mark.parametrize(
    ("scores", "target", "rank"),
    [
        pytest.param([9, 1, 3, 2], 2, 1, id="best of all but the pad"),
        pytest.param([0, 1, 3, 2], 1, 3, id="last"),
        pytest.param([9, 2, 2, 1], 1, 2, id="a tie counts against the target"),
        pytest.param([9, 2, 2, 1], 2, 2, id="whichever of the two it is"),
        pytest.param([0, 5, 5, 5], 2, 3, id="a constant model is last"),
        pytest.param([0, NAN, 1, 2], 1, 3, id="not a number is last"),
        pytest.param([0, NAN, 1, 2], 2, 3, id="not a number beats a number"),
        pytest.param([0, 1, -math.inf, 2], 2, 3, id="masked is last"),
    ],
)
def test_ranks_count_every_item_that_does_not_score_less(
    scores: list[float], target: int, rank: int
) -> None:
    """The pad is out of the ranking; ties, NaN and masks never help the target."""
    ranks = target_ranks(torch.tensor([scores], dtype=torch.float32), torch.tensor([target]))

    assert ranks.tolist() == [rank]


def test_the_window_is_masked_and_nothing_older() -> None:
    """With a window of two, the third last item stays in the ranking, the last two leave it."""
    holdout = Holdout([np.array([4, 3, 2])], np.array([1]))
    scores = torch.tensor([[9.0, 1.0, 2.0, 3.0, 4.0]])

    def rank(*, max_length: int, mask_window: bool) -> int:
        ranks = rank_holdout(
            lambda _: scores.clone(),
            holdout,
            n_items=4,
            max_length=max_length,
            mask_window=mask_window,
        )
        return int(ranks[0])

    assert rank(max_length=2, mask_window=False) == 4
    assert rank(max_length=2, mask_window=True) == 2
    assert rank(max_length=3, mask_window=True) == 1


def test_metrics_are_means_over_users() -> None:
    """Three users at ranks 1, 3 and 40: recall, NDCG and MRR by their formulas."""
    metrics = ranking_metrics(np.array([1, 3, 40]), ks=(1, 10))

    assert metrics == {
        "mrr": pytest.approx((1 + 1 / 3 + 1 / 40) / 3),
        "recall@1": pytest.approx(1 / 3),
        "ndcg@1": pytest.approx(1 / 3),
        "recall@10": pytest.approx(2 / 3),
        "ndcg@10": pytest.approx((1 + 1 / math.log2(4)) / 3),
    }


def test_metrics_of_nobody_are_refused() -> None:
    """No user has no mean."""
    with pytest.raises(ValueError, match="at least one user, got none"):
        ranking_metrics(np.empty(0, np.int64))


@pytest.mark.parametrize("mask_window", [True, False])
def test_a_recommender_is_ranked_by_its_scores_after_the_last_item(
    recommender: Recommender, mask_window: bool
) -> None:
    """Long, short and empty histories together give what each gives alone, sorted by hand."""
    histories = [np.array([3, 4, 5, 6, 7, 8, 9]), np.array([2]), np.empty(0, np.int64)]
    targets = np.array([1, 11, 12])
    ranks = []
    recommender.eval()
    for history, target in zip(histories, targets, strict=True):
        window = history[-5:].tolist() or [PAD]
        with torch.no_grad():
            outputs = recommender(torch.tensor(window), torch.tensor([len(window)]))
            scores = recommender.scores(outputs)[-1].tolist()
        excluded = {PAD, *window} if mask_window else {PAD}
        ranking = sorted(set(range(21)) - excluded, key=lambda item: -scores[item])
        ranks.append(1 + ranking.index(target))
    recommender.train()

    metrics = evaluate(recommender, Holdout(histories, targets), mask_window=mask_window)

    assert metrics == pytest.approx(ranking_metrics(np.array(ranks)))


def test_evaluation_leaves_the_recommender_in_its_mode(recommender: Recommender) -> None:
    """Dropout is off while ranking (twice gives the same) and on again behind it."""
    holdout = Holdout([np.array([1, 2, 3])] * 50, np.arange(1, 51) % 20 + 1)

    first, second = (evaluate(recommender, holdout) for _ in range(2))

    assert first == second
    assert recommender.training


def test_popularity_ranks_by_count_and_equals_by_index() -> None:
    """Most events first; of two items with as many events, the lower index."""
    counts = item_counts([[3, 3, 1], [4, 2, 3], []], n_items=5)

    assert counts.tolist() == [0, 1, 1, 3, 1, 0]
    assert popularity_order(counts).tolist() == [3, 1, 2, 4, 5]


def test_popularity_is_measured_by_the_same_protocol() -> None:
    """Ranks 3 and 4 without a mask; the masked window lifts the first to 2."""
    counts = np.array([0, 1, 1, 3, 1, 0])
    holdout = Holdout([np.array([3]), np.array([5])], np.array([2, 4]))

    plain = evaluate_popularity(counts, holdout, max_length=4, mask_window=False)
    masked = evaluate_popularity(counts, holdout, max_length=4)

    assert plain["mrr"] == pytest.approx((1 / 3 + 1 / 4) / 2)
    assert masked["mrr"] == pytest.approx((1 / 2 + 1 / 4) / 2)
