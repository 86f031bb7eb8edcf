"""The baselines of the prequential measurement, counted again by hand from the same clicks."""

from collections import Counter
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.config import ModelConfig
from models.recommender import Recommender
from models.release import Release, write_release
from models.vocabulary import Vocabulary
from pipeline.settings import RecommendSettings, Settings
from tests.verify_world import ITEMS, RING, K, StreamWorld

SETTINGS = Settings(recommend=RecommendSettings(top_k=K, ring=RING))
TRAINED = [9, 3, 15, 0, 21, 6, 18, 12]
"""How often each item occurred in training: few clicks change the order here and there."""

users, items = st.sampled_from(["anna", "bert"]), st.sampled_from([*ITEMS, "unheard"])
clicks = st.lists(st.tuples(users, items), max_size=40)


@pytest.fixture(scope="module")
def release(tmp_path_factory: pytest.TempPathFactory) -> Release:
    """A release whose items occurred unequally often."""
    config = ModelConfig(n_items=len(ITEMS), hidden_size=4, state_size=8, max_length=RING)
    return write_release(
        tmp_path_factory.mktemp("releases"),
        version=1,
        recommender=Recommender(config, torch.Generator().manual_seed(1)),
        vocabulary=Vocabulary(ITEMS, TRAINED),
        metrics={},
        training={},
    )


@given(clicks, st.integers(1, 12))
def test_baselines_know_what_was_before_each_event(
    release: Release,
    clicks: list[tuple[str, str]],
    size: int,
) -> None:
    """Repeat-last: a user's last K different items. Popularity: the K most clicked before a batch.

    Of equally popular items any may be among them; what the release does not know is none of them.
    """
    world = StreamWorld(Path(), SETTINGS, [release])
    counts = Counter(dict(zip(ITEMS, TRAINED, strict=True)))
    histories: dict[str, list[str]] = {}
    repeats = surely = perhaps = 0
    for start in range(0, len(clicks), size):
        *_, kth, behind = sorted(counts.values(), reverse=True)[: K + 1]
        batch = clicks[start : start + size]
        for user, item in batch:
            history = histories.setdefault(user, [])
            repeats += item in [*dict.fromkeys(history[: -RING - 1 : -1])][:K]
            surely += counts[item] > behind
            perhaps += item in counts and counts[item] >= kth
            history.append(item)
            world.click(user, item)
        counts.update(item for _, item in batch if item in counts)
        world.run(size)

    hits = world.metrics.prequential_hits
    assert world.metrics.prequential_events._value.get() == len(clicks)
    assert hits["repeat_last"]._value.get() == repeats
    assert surely <= hits["popularity"]._value.get() <= perhaps
