"""What one step leaves behind."""

import torch

from models.processes import Processes
from models.training.step import _add_up_gradients


def test_a_loss_kept_for_later_keeps_no_gradient() -> None:
    """On a GPU sixteen of them wait to be read; each must be one number, not a view of all."""
    module = torch.nn.Linear(30, 20)

    loss = _add_up_gradients(module, torch.tensor(2.5), Processes())

    assert loss.item() == 2.5
    assert loss.untyped_storage().nbytes() == loss.element_size()
