"""Triton's kernels for the recurrence on CUDA: one forwards, one backwards.

A program takes one segment and a block of channels through time, with the state and lambda in
registers. It asks for several rows before it works on the first: memory answers after some 700
cycles, in which a device does nothing unless much was asked for (at 3.3 TB/s, some 1.5 MB).

With TRITON_INTERPRET=1 in the environment before this module is imported the same kernels run on
the CPU, for tests.
"""

from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

AHEAD = 8
"""Rows that are asked for at once."""
LARGEST_BLOCK = 64
"""Channels of one program."""
TABLES = ("first", "begin", "lengths", "step")
"""Arguments that are read number by number. They lie anywhere in one tensor, a batch's here, the
next one's there: a kernel for each alignment would be compiled, in the midst of a training."""


@triton.jit(do_not_specialize_on_alignment=TABLES)  # type: ignore[untyped-decorator]  # of triton
def _advance(  # type: ignore[no-untyped-def]  # compiled, not run: annotations mean something else
    u,
    lam,
    before,
    h,
    first,
    begin,
    lengths,
    step,
    channels,
    every_row: tl.constexpr,
    block: tl.constexpr,
    ahead: tl.constexpr,
):
    """Take one segment from its state `before`; `h` gets every row, or one row per segment."""
    segment = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    pair = 2 * channel[:, None] + tl.arange(0, 2)[None, :]
    inside = pair < 2 * channels
    lam_re, lam_im = tl.split(tl.load(lam + pair, mask=inside, other=0.0))
    re, im = tl.split(tl.load(before + 2 * channels * segment + pair, mask=inside, other=0.0))
    start = tl.load(first + segment)
    steps = step + tl.load(begin + segment)
    length = tl.load(lengths + segment)
    for stretch in range(0, length, ahead):
        rows = ()
        inputs = ()
        for i in tl.static_range(ahead):
            there = length > stretch + i
            step_there = tl.load(steps + stretch + i, mask=there, other=0)
            row = 2 * channels * (start + step_there) + pair
            rows += (row,)  # type: ignore[assignment]
            read = tl.load(u + row, mask=pair < tl.where(there, 2 * channels, 0), other=0.0)
            inputs += (read,)  # type: ignore[assignment]
        for i in tl.static_range(ahead):
            there = length > stretch + i
            u_re, u_im = tl.split(inputs[i])
            new_re = u_re + lam_re * re - lam_im * im
            new_im = u_im + lam_re * im + lam_im * re
            re = tl.where(there, new_re, re)
            im = tl.where(there, new_im, im)
            if every_row:
                inside_there = pair < tl.where(there, 2 * channels, 0)
                tl.store(h + rows[i], tl.join(re, im), mask=inside_there)
    if not every_row:
        tl.store(h + 2 * channels * segment + pair, tl.join(re, im), mask=inside)


@triton.jit(do_not_specialize_on_alignment=TABLES)  # type: ignore[untyped-decorator]  # of triton
def _retreat(  # type: ignore[no-untyped-def]  # compiled, not run: annotations mean something else
    grad,
    lam,
    after,
    before,
    h,
    d,
    d_lam,
    first,
    begin,
    lengths,
    step,
    channels,
    every_row: tl.constexpr,
    with_lam: tl.constexpr,
    block: tl.constexpr,
    ahead: tl.constexpr,
):
    """Take one segment back from the gradient `after` it.

    `d` gets every row, or that of each segment's first position; `d_lam` gets a row per segment.
    """
    segment = tl.program_id(0).to(tl.int64)
    channel = tl.program_id(1) * block + tl.arange(0, block)
    pair = 2 * channel[:, None] + tl.arange(0, 2)[None, :]
    inside = pair < 2 * channels
    own = 2 * channels * segment + pair
    lam_re, lam_im = tl.split(tl.load(lam + pair, mask=inside, other=0.0))
    re, im = tl.split(tl.load(after + own, mask=inside, other=0.0))
    before_re, before_im = tl.split(tl.load(before + own, mask=inside, other=0.0))
    sum_re = re * 0.0
    sum_im = re * 0.0
    start = tl.load(first + segment)
    steps = step + tl.load(begin + segment)
    last = tl.load(lengths + segment) - 1
    for stretch in range(0, last + 1, ahead):
        rows = ()
        grads = ()
        states = ()
        for i in tl.static_range(ahead):
            t = last - stretch - i
            row = 2 * channels * (start + tl.load(steps + t, mask=t >= 0, other=0)) + pair
            rows += (row,)  # type: ignore[assignment]
            read = tl.load(grad + row, mask=pair < tl.where(t >= 0, 2 * channels, 0), other=0.0)
            grads += (read,)  # type: ignore[assignment]
            if with_lam:
                row = 2 * channels * (start + tl.load(steps + t - 1, mask=t > 0, other=0)) + pair
                read = tl.load(h + row, mask=pair < tl.where(t > 0, 2 * channels, 0), other=0.0)
                states += (read,)  # type: ignore[assignment]
        for i in tl.static_range(ahead):
            t = last - stretch - i
            grad_re, grad_im = tl.split(grads[i])
            new_re = grad_re + lam_re * re + lam_im * im
            new_im = grad_im + lam_re * im - lam_im * re
            re = tl.where(t >= 0, new_re, re)
            im = tl.where(t >= 0, new_im, im)
            if every_row:
                inside_there = pair < tl.where(t >= 0, 2 * channels, 0)
                tl.store(d + rows[i], tl.join(re, im), mask=inside_there)
            if with_lam:
                h_re, h_im = tl.split(states[i])
                h_re = tl.where(t > 0, h_re, before_re)
                h_im = tl.where(t > 0, h_im, before_im)
                sum_re += tl.where(t >= 0, re * h_re + im * h_im, 0.0)
                sum_im += tl.where(t >= 0, im * h_re - re * h_im, 0.0)
    if not every_row:
        tl.store(d + own, tl.join(re, im), mask=inside)
    if with_lam:
        tl.store(d_lam + own, tl.join(sum_re, sum_im), mask=inside)


@dataclass(frozen=True, kw_only=True, eq=False)
class Pieces:
    """What the programs of one launch take: position t of a piece is `first + step[begin + t]`."""

    first: Tensor
    begin: Tensor
    lengths: Tensor
    step: Tensor

    def __len__(self) -> int:
        return self.first.numel()


def _launch(
    kernel: triton.JITFunction, tensors: tuple[Tensor, ...], pieces: Pieces, **options: bool
) -> None:
    """Run a kernel over pieces, on the device of its tensors (complex, of as many channels)."""
    channels = tensors[0].shape[1]
    block = min(LARGEST_BLOCK, triton.next_power_of_2(channels))
    # Else it would run on the current device.
    with torch.cuda.device_of(tensors[0]):  # type: ignore[no-untyped-call]  # torch leaves it so
        kernel[len(pieces), triton.cdiv(channels, block)](
            *map(torch.view_as_real, tensors),
            pieces.first,
            pieces.begin,
            pieces.lengths,
            pieces.step,
            channels,
            block=block,
            ahead=AHEAD,
            num_warps=warps(block),
            enable_fp_fusion=True,  # said, so that bits do not change with Triton's default
            **options,
        )


def warps(block: int) -> int:
    """Return the warps (32 threads each) of a program of so many channels: a thread has one.

    With more, the parts of a complex number lie in two threads, and every step goes through shared
    memory and waits there.
    """
    return max(1, block // 32)


def forward(u: Tensor, lam: Tensor, before: Tensor, pieces: Pieces, *, every_row: bool) -> Tensor:
    """Return h at every row, or after each piece, given the states before each."""
    h = torch.empty_like(u if every_row else before)
    _launch(_advance, (u, lam, before, h), pieces, every_row=every_row)
    return h


def backward(
    grad: Tensor,
    lam: Tensor,
    after: Tensor,
    pieces: Pieces,
    *,
    every_row: bool = True,
    states: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return d and, given the states at all rows and before each piece, lambda's gradient."""
    d = torch.empty_like(grad if every_row else after)
    h, before = states or (after, after)  # not read without them
    d_lam = torch.empty_like(after)
    tensors = (grad, lam, after, before, h, d, d_lam)
    _launch(_retreat, tensors, pieces, every_row=every_row, with_lam=states is not None)
    return d, d_lam
