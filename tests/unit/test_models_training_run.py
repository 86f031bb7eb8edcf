"""When a training is over by the clock."""

from dataclasses import replace

import pytest
import torch

from models.packing import TrainingWindows
from models.processes import Processes
from models.training.run import TrainingRun
from tests.unit.test_models_training import CONFIG, SEQUENCES, TRAINING, VALIDATION


@pytest.mark.parametrize(
    ("losses", "spent_s", "reason"),
    [([1.0], 5.0, None), ([1.0], 7.0, "time"), ([], 7.0, None), ([], 10.0, "time")],
)
def test_time_for_a_last_validation_is_kept(
    losses: list[float], spent_s: float, reason: str | None
) -> None:
    """As long as the one before took, where steps since then are still to be measured."""
    run = TrainingRun(
        CONFIG,
        replace(TRAINING, time_budget_s=10.0),
        TrainingWindows.cut(SEQUENCES, CONFIG.max_length),
        VALIDATION,
        mask_window=True,
        checkpoint_path=None,
        processes=Processes(),
        device=torch.device("cpu"),
    )
    run.validation_s, run.losses, run.seconds_before = 3.0, losses, spent_s

    assert run.stop_reason() == reason
