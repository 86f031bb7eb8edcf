"""The running average of the weights against its definition in double precision."""

import copy

import numpy as np
import pytest
import torch

from models.config import ModelConfig
from models.recommender import Recommender
from models.training.averaging import add_to_average

STEPS = 300
ROUNDING = 1e-5
"""Relative to the largest weight: 300 interpolations in float32, each rounded."""


@pytest.mark.parametrize("decay", [0.0, 0.5, 0.99, 0.9999])
def test_the_average_is_that_of_its_definition(decay: float) -> None:
    """Every step's weights count with decay^age over the sum of those; where it began does not."""
    config = ModelConfig(n_items=9, hidden_size=4, state_size=3, n_blocks=1)
    generator = torch.Generator().manual_seed(1)
    module = Recommender(config, generator)
    average = copy.deepcopy(module)
    with torch.no_grad():
        for parameter in average.parameters():
            parameter.fill_(1e3)
    seen: list[list[np.ndarray]] = []

    for step in range(1, STEPS + 1):
        with torch.no_grad():
            for parameter in module.parameters():
                parameter.add_(0.1 * torch.randn(parameter.shape, generator=generator))
        seen.append([p.detach().numpy().astype(np.float64) for p in module.parameters()])
        add_to_average(average, module, decay=decay, steps=step)

    shares = np.float64(decay) ** np.arange(STEPS - 1, -1, -1)
    for place, mean in enumerate(average.parameters()):
        steps = np.stack([weights[place] for weights in seen])
        expected = np.tensordot(shares, steps, 1) / shares.sum()
        difference = np.abs(mean.detach().numpy() - expected).max()
        assert difference <= ROUNDING * np.abs(steps).max()
