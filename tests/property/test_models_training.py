"""A packed training batch means what the padded batch of the published form means."""

import numpy as np
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.config import ModelConfig
from models.packing import TrainingWindows
from models.recommender import Recommender
from tests.benchmarks.bench_train import disagreement
from tests.benchmarks.forms import PublishedRecommender, padded
from tests.devices import on_each_device

N_ITEMS = 12
LOSS_RELATIVE = 1e-6
"""Two float32 means over the same terms in different orders."""
GRADIENT_RELATIVE = 2e-5
"""The same, through two blocks and back; relative to a gradient's largest entry."""


@on_each_device
@given(
    sequences=st.lists(
        st.lists(st.integers(1, N_ITEMS), min_size=1, max_size=20), min_size=1, max_size=6
    ),
    max_length=st.integers(2, 9),
)
def test_loss_and_gradients_are_those_of_the_padded_form(
    device: torch.device, sequences: list[list[int]], max_length: int
) -> None:
    """Left padding, recursive doubling, complex weights and whole logits give the same numbers.

    Those of the CPU, whatever device has trained.
    """
    config = ModelConfig(n_items=N_ITEMS, hidden_size=8, state_size=16, max_length=max_length)
    packed = Recommender(config, torch.Generator().manual_seed(max_length))
    with torch.no_grad():  # far from the start, where all gradients are small and much alike
        for parameter in packed.parameters():
            parameter.mul_(1.5)
    windows = TrainingWindows.cut(sequences, max_length)
    chosen = np.arange(len(windows))

    published = PublishedRecommender(packed)

    differences = disagreement(
        packed.to(device),
        published,
        windows.batch(chosen),
        *padded(windows, chosen, max_length, before=True),
    )

    assert differences["loss_relative_difference"] <= LOSS_RELATIVE
    assert differences["gradient_relative_difference"] <= GRADIENT_RELATIVE
