"""Dropout whose random numbers cost little on a CPU.

torch draws one number of double precision per element from a single thread, which makes dropout a
quarter of a training step. Here 16 random bits decide on an element. Same law, other draws.
"""

import numpy as np
import torch
from torch import Tensor
from torch.nn import functional as F

CHOICES = 2**16
"""Equally likely draws for an element: the rate is exact to 1 / 131072."""


def dropout(x: Tensor, rate: float, training: bool) -> Tensor:
    """Zero each element with probability `rate` and scale the others so that the mean stays.

    Args:
        x: floating point, any shape.
        rate: in [0, 1).
        training: False: x as it is.

    Returns:
        A tensor of x's shape and dtype. Draws follow from torch's global random state.
    """
    if not training or rate == 0:
        return x
    if x.device.type != "cpu":
        return F.dropout(x, rate)
    dropped = min(round(rate * CHOICES), CHOICES - 1)
    seed = int(torch.empty((), dtype=torch.int64).random_())
    words = np.random.SFC64(seed).random_raw(-(-x.numel() // 4))
    draws = torch.from_numpy(words.view(np.int16))[: x.numel()].view(x.shape)
    noise = torch.ge(draws, dropped - CHOICES // 2, out=torch.empty_like(x, requires_grad=False))
    return x * noise.mul_(CHOICES / (CHOICES - dropped))
