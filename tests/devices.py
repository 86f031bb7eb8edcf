"""The devices of this machine: what is tested on the CPU is tested on a GPU, too, where one is.

Only there do Triton's kernels run compiled and graphs get captured; elsewhere an interpreter and
a recording stand in for them.
"""

import pytest
import torch
from torch import Tensor

from models.scan.layout import Rows
from models.scan.recurrence import Backend
from models.serving.graphs import Capture, capture_cuda
from tests.recorded_graph import capture_by_recording

HAS_GPU = torch.cuda.is_available()
DEVICES = [torch.device("cpu"), *([torch.device("cuda")] if HAS_GPU else [])]

on_each_device = pytest.mark.parametrize("device", DEVICES, ids=str)


def capture_on(device: torch.device) -> Capture:
    """Return how steps are captured there."""
    return capture_cuda if device.type == "cuda" else capture_by_recording


class OnGpu:
    """A form of the scan for CUDA as one that takes tensors of the CPU: the laws are the same."""

    device_type = "cpu"

    def __init__(self, form: Backend) -> None:
        self._form = form
        self.name = form.name

    def forward(self, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows) -> Tensor:
        """Return the state at every row, computed there."""
        return self._form.forward(u.cuda(), lam.cuda(), h0.cuda(), rows).cpu()

    def backward(
        self, grad: Tensor, h: Tensor, lam: Tensor, h0: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in u and lambda, computed there."""
        d, d_lam = self._form.backward(grad.cuda(), h.cuda(), lam.cuda(), h0.cuda(), rows)
        return d.cpu(), d_lam.cpu()
