"""The recurrence h_t = u_t + lambda * h_{t-1} in four forms that compute the same numbers.

`step` moves one position and serves; `scan` moves whole sequences and trains; `scan_reference` is
the slow truth in double precision; `scan_doubling` is the published form (Yue et al., WSDM 2024,
arXiv 2310.02367, section 3.3: recursive parallelisation over a padded batch), kept for tests and
benchmarks.

State goes in and comes out as a value; nothing here writes to what it was given.
"""

from dataclasses import dataclass
from typing import Any

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.shapes import (
    Channels,
    PackedChannels,
    PaddedChannels,
    PaddedMask,
    SegmentLengths,
    SegmentStates,
)


@dataclass(frozen=True, kw_only=True, eq=False)
class PackedLayout:
    """Where the rows of packed segments lie in time-major order.

    Time-major, the segments are ranked by length, longest first (equal lengths keep their order),
    and the rows of one time step are contiguous: those of the first `batch_sizes[step]` ranks. A
    scan then has as many steps as the longest segment has rows, and no row is padding.

    Conversions, for tensors `x` of one row per position and `y` of one row per segment:
    `x[to_time_major]` is x time-major, and `[to_packed]` leads back; `y[order]` is y by rank, and
    `[rank]` leads back; `x[last_rows]`, with x time-major, is each segment's last row, by rank.
    """

    batch_sizes: tuple[int, ...]
    """Active segments at each step; never increasing."""
    to_time_major: Tensor
    """int64 (t,): the packed row that stands at each time-major row."""
    to_packed: Tensor
    """int64 (t,): the time-major row that stands at each packed row."""
    order: Tensor
    """int64 (s,): the segment at each rank."""
    rank: Tensor
    """int64 (s,): the rank of each segment."""
    last_rows: Tensor
    """int64 (s,): the time-major row of the last position of the segment at each rank."""

    @classmethod
    def from_lengths(
        cls, lengths: SegmentLengths, device: torch.device | str | None = None
    ) -> "PackedLayout":
        """Lay out segments of the given lengths (int64 (s,), each at least 1).

        Args:
            lengths: rows of each segment, in packed order; s may be 0.
            device: where the indices shall lie; None: beside `lengths`.

        Raises:
            ValueError: a length is below 1.
        """
        device = lengths.device if device is None else device
        lengths = lengths.cpu()
        if lengths.numel() and int(lengths.min()) < 1:
            msg = f"a segment must have at least 1 row, got a length of {int(lengths.min())}"
            raise ValueError(msg)
        segments = torch.arange(lengths.numel())
        order = torch.argsort(lengths, descending=True, stable=True)
        rank = torch.empty_like(order)
        rank[order] = segments
        # A segment is active at a step if it is longer than the step's number.
        batch_sizes = (lengths.numel() - torch.bincount(lengths).cumsum(0))[:-1]
        offsets = batch_sizes.cumsum(0) - batch_sizes
        starts = lengths.cumsum(0) - lengths
        rows = torch.arange(int(lengths.sum()))
        segment = torch.repeat_interleave(segments, lengths)
        to_packed = offsets[rows - starts[segment]] + rank[segment]
        to_time_major = torch.empty_like(to_packed)
        to_time_major[to_packed] = rows
        return cls(
            batch_sizes=tuple(batch_sizes.tolist()),
            to_time_major=to_time_major.to(device),
            to_packed=to_packed.to(device),
            order=order.to(device),
            rank=rank.to(device),
            last_rows=(offsets[lengths[order] - 1] + segments).to(device),
        )


def step(u: SegmentStates, lam: Channels, h: SegmentStates) -> SegmentStates:
    """Move every state by one position: u + lambda * h."""
    return torch.addcmul(u, lam, h)


def scan(
    u: PackedChannels, lam: Channels, h0: SegmentStates, lengths: SegmentLengths
) -> tuple[PackedChannels, SegmentStates]:
    """Run the recurrence over packed segments, each from its own state.

    Differentiable once, in u, lam and h0.

    Args:
        u: inputs, packed, complex64 or complex128.
        lam: eigenvalues, of u's dtype.
        h0: the state before each segment's first row, of u's dtype.
        lengths: rows of each segment, at least 1, their sum t.

    Returns:
        The state at every row (packed) and the state after each segment's last row.

    Raises:
        ValueError: a length is below 1, or the lengths do not add up to t.
    """
    _check_rows(u, lengths)
    layout = PackedLayout.from_lengths(lengths, u.device)
    h = scan_time_major(u[layout.to_time_major], lam, h0[layout.order], layout)
    return h[layout.to_packed], h[layout.last_rows][layout.rank]


def scan_time_major(
    u: PackedChannels, lam: Channels, h0: SegmentStates | None, layout: PackedLayout
) -> PackedChannels:
    """Run the recurrence over rows that already lie time-major.

    Args:
        u: inputs, time-major.
        lam: eigenvalues, of u's dtype.
        h0: the state before each segment's first row, by rank; None: zero.
        layout: where the rows lie.

    Returns:
        The state at every row, time-major. `[layout.last_rows]` of it are the last states, by rank.
    """
    if not layout.batch_sizes:
        return u
    h: Tensor = _Scan.apply(u, lam, h0, list(layout.batch_sizes))
    return h


class _Scan(torch.autograd.Function):
    """One pass over time forwards, one backwards; each step is one contiguous block of rows.

    With g_t the gradient of the loss in h_t by torch's convention (d/d re + i d/d im) and d_t that
    of everything from h_t on: d_t = g_t + conj(lambda) * d_{t+1}. Then the gradients in u_t, lambda
    and h_0 are d_t, sum_t d_t * conj(h_{t-1}) and conj(lambda) * d_1.
    """

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, lam: Tensor, h0: Tensor | None, batch_sizes: list[int]
    ) -> Tensor:
        u = u.contiguous()
        h = torch.empty_like(u)
        inputs, states = torch.split(u, batch_sizes), torch.split(h, batch_sizes)
        if h0 is None:
            states[0].copy_(inputs[0])
        else:
            torch.addcmul(inputs[0], lam, h0, out=states[0])
        for now in range(1, len(batch_sizes)):
            before = states[now - 1][: batch_sizes[now]]
            torch.addcmul(inputs[now], lam, before, out=states[now])
        ctx.save_for_backward(h, lam, h0)
        ctx.batch_sizes = batch_sizes
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None]:
        h, lam, h0 = ctx.saved_tensors
        batch_sizes = ctx.batch_sizes
        lam_conj = lam.conj().resolve_conj()
        d = torch.empty_like(h)
        grads, states, ds = (torch.split(x, batch_sizes) for x in (grad.contiguous(), h, d))
        # lambda's gradient is summed over time here, while the rows are in the processor's cache,
        # and over segments at the end. torch has no fused conjugate product, hence `before_conj`.
        d_lam = torch.zeros_like(states[0])
        before_conj = torch.empty_like(states[0])
        later = 0
        for now in reversed(range(len(batch_sizes))):
            active = batch_sizes[now]
            if later:
                torch.addcmul(grads[now][:later], lam_conj, ds[now + 1], out=ds[now][:later])
            if later < active:
                ds[now][later:].copy_(grads[now][later:])
            before = states[now - 1][:active] if now else h0
            if before is not None:
                torch.conj_physical(before, out=before_conj[:active])
                d_lam[:active].addcmul_(ds[now], before_conj[:active])
            later = active
        return d, d_lam.sum(0), None if h0 is None else lam_conj * ds[0], None


def scan_reference(
    u: PackedChannels, lam: Channels, h0: SegmentStates, lengths: SegmentLengths
) -> tuple[PackedChannels, SegmentStates]:
    """Compute what `scan` computes, row by row in complex128: slow, and plainly right.

    Differentiable by autograd. Arguments, results (complex128) and errors as in `scan`.
    """
    _check_rows(u, lengths)
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


def scan_doubling(u: PaddedChannels, lam: Channels, real: PaddedMask) -> PaddedChannels:
    """Run the recurrence from zero states over a left-padded batch by recursive doubling.

    Blocks of 1, 2, 4, ... positions are joined in pairs: the right half of each pair takes the last
    state of its left half times 1 to block powers of lambda, unless that position is a pad.

    Args:
        u: inputs; those at pads count for their own position only.
        lam: eigenvalues, of u's dtype.
        real: False at pads, which all lie before their sequence's first True.

    Returns:
        The state at every position; at a pad it is u.
    """
    n, length, c = u.shape
    levels = (length - 1).bit_length()
    padding = (1 << levels) - length
    h = torch.cat((u.new_zeros(n, padding, c), u), 1)
    carries = torch.cat((real.new_zeros(n, padding), real), 1).to(u.dtype)
    powers = lam[None]  # (block, c): lambda^1 ... lambda^block
    for level in range(levels):
        block = 1 << level
        left, right = h.view(-1, 2, block, c).unbind(1)
        carry = left[:, -1:] * carries.view(-1, 2, block)[:, 0, -1:, None]
        h = torch.stack((left, right + powers * carry), 1).view(n, -1, c)
        powers = torch.cat((powers, powers * powers[-1]), 0)
    return h[:, padding:]


def _check_rows(u: Tensor, lengths: Tensor) -> None:
    if int(lengths.sum()) != u.shape[0]:
        msg = f"lengths must add up to the {u.shape[0]} rows of u, got {int(lengths.sum())}"
        raise ValueError(msg)
