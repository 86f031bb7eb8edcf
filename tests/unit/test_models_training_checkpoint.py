"""What a training must share with its checkpoint to go on from it, and what it takes over."""

from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.config import ModelConfig, TrainingConfig
from models.evaluation import Holdout
from models.packing import TrainingWindows
from models.recommender import Recommender
from models.training.checkpoint import training_identity
from models.training.step import negative_sampler
from models.training.train import train

CONFIG = ModelConfig(n_items=9, hidden_size=8, state_size=4, n_blocks=1, max_length=4)
TRAINING = TrainingConfig(batch_size=2, learning_rate=0.3, max_epochs=3, validate_every_steps=1)
SEQUENCES = [[1, 2, 3, 4], [5, 6, 7], [8, 9, 1, 2, 3], [4, 5]]
VALIDATION = Holdout([np.array([1, 2]), np.array([6])], np.array([3, 7]))


def identity(
    sequences: list[list[int]], validation: Holdout, training: TrainingConfig = TRAINING
) -> dict[str, Any]:
    """Return what has to be the same."""
    windows = TrainingWindows.cut(sequences, CONFIG.max_length)
    return training_identity(CONFIG, training, windows, validation, mask_window=True)


@pytest.mark.parametrize(
    ("sequences", "histories", "targets"),
    [
        ([[1, 2, 3, 9], *SEQUENCES[1:]], [[1, 2], [6]], [3, 7]),
        ([[1, 2, 3], [4, 5, 6, 7], *SEQUENCES[2:]], [[1, 2], [6]], [3, 7]),
        (SEQUENCES, [[1, 5], [6]], [3, 7]),
        (SEQUENCES, [[1], [2, 6]], [3, 7]),
        (SEQUENCES, [[1, 2], [6]], [3, 8]),
    ],
    ids=["an item", "a length", "an item before a target", "a history's length", "a target"],
)
def test_other_data_of_the_same_size_is_other_data(
    sequences: list[list[int]], histories: list[list[int]], targets: list[int]
) -> None:
    """Whatever it is that differs, and be it one number."""
    other = Holdout([np.array(history) for history in histories], np.array(targets))

    assert identity(sequences, other)["data"] != identity(SEQUENCES, VALIDATION)["data"]


def test_how_long_to_train_may_change_on_the_way() -> None:
    """More epochs, more patience, another budget: the training is the same."""
    longer = replace(TRAINING, max_epochs=99, patience=99, time_budget_s=99.0)

    assert identity(SEQUENCES, VALIDATION, longer) == identity(SEQUENCES, VALIDATION)


def test_the_best_and_the_time_before_an_interruption_count(tmp_path: Path) -> None:
    """What was best stays what there is to beat, though the last validation was worse."""
    path, steps = tmp_path / "checkpoint.pt", []
    validation = Holdout([np.array([item]) for item in range(1, 9)], np.arange(2, 10))
    training = replace(TRAINING, patience=1, max_epochs=99)
    first = train(CONFIG, training, SEQUENCES, validation, checkpoint_path=path)
    assert first.best_epoch < first.history[-1].epoch or first.history[-1].metrics != first.metrics

    again = train(
        CONFIG, training, SEQUENCES, validation, checkpoint_path=path, progress=steps.append
    )

    assert steps == []
    assert (again.metrics, again.best_epoch) == (first.metrics, first.best_epoch)
    assert again.seconds >= first.history[-1].seconds


def test_a_gradient_is_cut_to_the_norm_that_is_asked_for() -> None:
    """Cut to nearly nothing, far below what the optimizer adds to it, it moves no weight."""
    training = replace(TRAINING, clip_norm=1e-20, weight_decay=0.0)

    result = train(CONFIG, training, SEQUENCES, VALIDATION)

    start = Recommender(CONFIG, torch.Generator().manual_seed(training.seed)).state_dict()
    for name, value in result.recommender.state_dict().items():
        torch.testing.assert_close(value, start[name], rtol=0, atol=1e-6, msg=name)


def test_negatives_are_drawn_as_often_as_items_occur() -> None:
    """An item that is clicked more often than another is met more often."""
    windows = TrainingWindows.cut([[1, 1, 1, 2]], CONFIG.max_length)

    sampler = negative_sampler(CONFIG, replace(TRAINING, sampled_negatives=3), windows)

    assert sampler is not None
    often, seldom, never = sampler.chances[1:4].tolist()
    assert often > seldom > never > 0
