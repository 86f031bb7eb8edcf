"""The recurrence row by row, in double precision: slow, and plainly right."""

import torch

from models.shapes import Channels, PackedChannels, SegmentLengths, SegmentStates


def scan_reference(
    u: PackedChannels, lam: Channels, h0: SegmentStates, lengths: SegmentLengths
) -> tuple[PackedChannels, SegmentStates]:
    """Compute what `models.scan.scan` computes, in complex128.

    Differentiable by autograd. Arguments and results as there.

    Raises:
        RuntimeError: the lengths do not add up to t.
    """
    u, lam, h0 = (x.to(torch.complex128) for x in (u, lam, h0))
    states, last = [], []
    for inputs, h in zip(torch.split(u, lengths.tolist()), h0, strict=True):
        for row in inputs:
            h = row + lam * h
            states.append(h)
        last.append(h)
    if not last:
        return u, h0
    return torch.stack(states), torch.stack(last)
