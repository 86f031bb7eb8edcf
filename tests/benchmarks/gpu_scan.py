"""The scan as a GPU makes it, each way alone, beside the bytes that it has to move."""

import statistics
from collections.abc import Callable
from functools import partial

import torch
from torch import Tensor

from models.scan import PackedLayout, scan_doubling
from models.scan.loop import LoopScan
from models.scan.recurrence import backend_for
from models.serving.graphs import Body, Capture
from tests.benchmarks.gpu_copy import CALLS, large_copy, repeated
from tests.benchmarks.turns import in_turns

SHAPES = ((128, 200, 128), (128, 1000, 512))
"""Sequences, rows of each, channels: those of training, and ones that fill a device."""
FORWARD_BYTES, BACKWARD_BYTES = 16, 24
"""Of each complex64: u is read and h written; the gradient and h are read, that in u written."""
FORWARD, BACKWARD = "forward", "backward"
FLOOR, DOUBLING = "byte floor", "recursive doubling"


def measure_scan(
    device: torch.device, shape: tuple[int, int, int], capture: Capture, rounds: int
) -> dict[str, dict[str, float]]:
    """Return microseconds of every form, forwards and backwards, and the floor of either.

    All are captured in graphs and take turns. The floor is the bytes at the speed at which memory
    is copied in the same rounds. Backwards means the gradients in u and lambda, as in training,
    without the forward pass before it; for doubling, what both ways take less the first.
    """
    batch, length, channels = shape
    generator = torch.Generator().manual_seed(0)
    u, gradient = (
        torch.randn(batch * length, channels, dtype=torch.complex64, generator=generator).to(device)
        for _ in range(2)
    )
    radius, angle = torch.rand(2, channels, generator=generator)
    lam = torch.polar(0.8 + 0.19 * radius, 6.2832 * angle).to(device)
    h0 = torch.zeros(batch, channels, dtype=torch.complex64, device=device)
    rows = PackedLayout.from_lengths(torch.full((batch,), length), device).rows
    real = torch.ones(batch, length, dtype=torch.bool, device=device)
    copy, copied_bytes = large_copy(device, u.nbytes)

    works: dict[tuple[str, str], Body] = {(FLOOR, FORWARD): copy}
    for form in (backend_for(device), LoopScan()):
        h = form.forward(u, lam, h0, rows)
        works[form.name, FORWARD] = partial(form.forward, u, lam, h0, rows)
        works[form.name, BACKWARD] = _first(partial(form.backward, gradient, h, lam, h0, rows))

    def double(*, there_and_back: bool) -> Tensor:
        leaves = [x.detach().requires_grad_(there_and_back) for x in (u, lam)]
        h = scan_doubling(leaves[0].view(batch, length, channels), leaves[1], real)
        return torch.autograd.grad(h, leaves, gradient.view(h.shape))[0] if there_and_back else h

    works[DOUBLING, FORWARD] = partial(double, there_and_back=False)
    works[DOUBLING, BACKWARD] = partial(double, there_and_back=True)
    works = {key: repeated(work, device, capture) for key, work in works.items()}
    spans = in_turns({" ".join(key): work for key, work in works.items()}, rounds)
    medians = {key: statistics.median(spans[" ".join(key)]) / CALLS for key in works}
    medians[DOUBLING, BACKWARD] -= medians[DOUBLING, FORWARD]
    bytes_per_us = copied_bytes / medians.pop((FLOOR, FORWARD))
    floors = {FORWARD: FORWARD_BYTES, BACKWARD: BACKWARD_BYTES}
    return {
        **{name: {way: medians[name, way] for way in floors} for name, _ in medians},
        FLOOR: {way: u.numel() * each / bytes_per_us for way, each in floors.items()},
    }


def _first(work: Callable[[], tuple[Tensor, ...]]) -> Body:
    return lambda: work()[0]
