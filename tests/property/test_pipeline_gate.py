"""A release is measured on what it knows: items that it does not know are as if never clicked."""

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.evaluation import Holdout
from models.packing import PAD
from models.release import Release, load_recommender
from models.vocabulary import Vocabulary
from pipeline.training.gate import evaluate_release
from tests.releases import random_release

KNOWN = [f"item-{number}" for number in range(20)]
OURS = Vocabulary(["new", *reversed(KNOWN), "newer"], [1] * (len(KNOWN) + 2))
MAX_LENGTH = 3

items = st.integers(1, OURS.n_items)
users = st.lists(st.tuples(st.lists(items, max_size=8), items), min_size=1, max_size=5)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release of twenty items, whose window holds three."""
    return random_release(tmp_path_factory.mktemp("releases"), KNOWN, max_length=MAX_LENGTH)


@given(users, st.booleans())
def test_unknown_items_are_no_part_of_a_history(
    release: Release, users: list[tuple[list[int], int]], mask_window: bool
) -> None:
    """Each user is ranked by hand: unknown items take no place in the window, as targets miss."""
    recommender, reciprocals = load_recommender(release).eval(), []
    for history, target in users:
        ours = [OURS.item_ids[index - 1] for index in (*history, target)]
        *window, wanted = [release.vocabulary.index_of(item_id) for item_id in ours]
        window = [index for index in window if index][-MAX_LENGTH:] or [PAD]
        with torch.no_grad():
            outputs = recommender(torch.tensor(window), torch.tensor([len(window)]))
            scores = recommender.scores(outputs)[-1].tolist()
        masked = window if mask_window else []
        scores = [-np.inf if index in masked else score for index, score in enumerate(scores)]
        rank = sum(score >= scores[wanted] for score in scores[PAD + 1 :])
        reciprocals.append(1 / rank if wanted else 0.0)

    metrics = evaluate_release(
        release,
        OURS,
        Holdout(
            [np.array(history, np.int64) for history, _ in users], np.array([t for _, t in users])
        ),
        mask_window=mask_window,
        device=torch.device("cpu"),
    )

    assert metrics["mrr"] == pytest.approx(np.mean(reciprocals))
