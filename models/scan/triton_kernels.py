"""The recurrence on CUDA: one kernel forwards, one backwards, in Triton.

A program takes one segment and a block of channels through time, with the state and lambda in
registers. Few segments do not fill a device; they are then cut into chunks of a power of two of
positions, and the work is done in three goes, each of them a scan:

1. every chunk from the zero state, which gives what it adds to the state after it;
2. these over the chunks of each segment, with lambda to the power of a chunk's length;
3. every chunk again, from the state that (2) gives before it.

The first go reads the input once more. With TRITON_INTERPRET=1 in the environment before this
module is imported the same kernels run on the CPU, for tests.
"""

import weakref
from dataclasses import dataclass

import torch
import triton
import triton.language as tl
from torch import Tensor

from models.scan.layout import Rows

THREADS_TO_FILL = 2**18
"""Channels in flight at which a large device (132 processors of 2,048 threads) is full."""
SHORTEST_CHUNK = 16
"""Positions. Shorter chunks would make the second go cost as much as the others."""
LARGEST_BLOCK = 64
"""Channels of one program."""


@triton.jit  # type: ignore[untyped-decorator]  # triton leaves it untyped
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
    for t in range(tl.load(lengths + segment)):
        row = 2 * channels * (start + tl.load(steps + t)) + pair
        u_re, u_im = tl.split(tl.load(u + row, mask=inside, other=0.0))
        new_re = u_re + lam_re * re - lam_im * im
        im = u_im + lam_re * im + lam_im * re
        re = new_re
        if every_row:
            tl.store(h + row, tl.join(re, im), mask=inside)
    if not every_row:
        tl.store(h + 2 * channels * segment + pair, tl.join(re, im), mask=inside)


@triton.jit  # type: ignore[untyped-decorator]  # triton leaves it untyped
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
    length = tl.load(lengths + segment)
    for back in range(length):
        t = length - 1 - back
        row = 2 * channels * (start + tl.load(steps + t)) + pair
        grad_re, grad_im = tl.split(tl.load(grad + row, mask=inside, other=0.0))
        new_re = grad_re + lam_re * re + lam_im * im
        im = grad_im + lam_re * im - lam_im * re
        re = new_re
        if every_row:
            tl.store(d + row, tl.join(re, im), mask=inside)
        if with_lam:
            h_re = before_re
            h_im = before_im
            if t > 0:
                earlier = 2 * channels * (start + tl.load(steps + t - 1)) + pair
                h_re, h_im = tl.split(tl.load(h + earlier, mask=inside, other=0.0))
            sum_re += re * h_re + im * h_im
            sum_im += im * h_re - re * h_im
    if not every_row:
        tl.store(d + own, tl.join(re, im), mask=inside)
    if with_lam:
        tl.store(d_lam + own, tl.join(sum_re, sum_im), mask=inside)


@dataclass(frozen=True, kw_only=True, eq=False)
class _Pieces:
    """What the programs of one launch take: position t of a piece is `first + step[begin + t]`."""

    first: Tensor
    begin: Tensor
    lengths: Tensor
    step: Tensor

    def __len__(self) -> int:
        return self.first.numel()


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chunks:
    """Segments cut into chunks, each segment's laid end to end."""

    pieces: _Pieces
    """The chunks."""
    joined: _Pieces
    """The segments, with a row for each chunk."""
    heads: Tensor
    """int64 (s,): each segment's first chunk."""
    tails: Tensor
    """int64 (s,): each segment's last chunk."""
    row_before: Tensor
    """int64 (chunks,): row of the position before each chunk; any row for heads."""
    doublings: int
    """A chunk has 2 to this power positions, a tail at most that."""


class TritonScan:
    """Scans on CUDA.

    Args:
        chunk: positions of a chunk, a power of two; None: chosen by how much there is to do.
        device_type: cpu only for Triton's interpreter.
    """

    name = "triton"
    packed = True

    def __init__(self, chunk: int | None = None, device_type: str = "cuda") -> None:
        self.device_type = device_type
        self._chunk = chunk
        self._last: tuple[weakref.ref[Rows], int, _Pieces, _Chunks | None] | None = None

    def forward(self, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows) -> Tensor:
        """Return the state at every row."""
        whole, chunks = self._plan(rows, u)
        if chunks is None:
            return _forward(u, lam, h0, whole, every_row=True)
        zeros = u.new_zeros(len(chunks.pieces), u.shape[1])
        added = _forward(u, lam, zeros, chunks.pieces, every_row=False)
        ends = _forward(added, _power(lam, chunks.doublings), h0, chunks.joined, every_row=True)
        before = ends.roll(1, 0)
        before[chunks.heads] = h0
        return _forward(u, lam, before, chunks.pieces, every_row=True)

    def backward(
        self, grad: Tensor, h: Tensor, lam: Tensor, h0: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in u and lambda."""
        whole, chunks = self._plan(rows, h)
        if chunks is None:
            d, d_lam = _backward(grad, lam, torch.zeros_like(h0), whole, states=(h, h0))
            return d, d_lam.sum(0)
        zeros = h.new_zeros(len(chunks.pieces), h.shape[1])
        added, _ = _backward(grad, lam, zeros, chunks.pieces, every_row=False)
        power = _power(lam, chunks.doublings)
        starts, _ = _backward(added, power, torch.zeros_like(h0), chunks.joined)
        after = starts.roll(-1, 0)
        after[chunks.tails] = 0
        before = h[chunks.row_before]
        before[chunks.heads] = h0
        d, d_lam = _backward(grad, lam, after, chunks.pieces, states=(h, before))
        return d, d_lam.sum(0)

    def _plan(self, rows: Rows, x: Tensor) -> tuple[_Pieces, _Chunks | None]:
        """Return what the launches take; a model's blocks ask for the same again and again."""
        last = self._last
        if last is None or last[0]() is not rows or last[1] != x.shape[1]:
            chunk = self._chunk or _chunk_length(rows, x.shape[1])
            cut = None if chunk is None else _cut(rows, chunk, x.device)
            pieces = _pieces(rows.first, torch.zeros_like(rows.first), rows.lengths, rows.step)
            last = (weakref.ref(rows), x.shape[1], _on(pieces, x.device), cut)
            self._last = last
        return last[2], last[3]


def _chunk_length(rows: Rows, channels: int) -> int | None:
    """Choose the longest chunks that fill the device; None: no cutting."""
    if rows.first.numel() * channels >= THREADS_TO_FILL:
        return None
    wanted = int(rows.lengths.sum()) * channels // THREADS_TO_FILL
    chunk = max(SHORTEST_CHUNK, 1 << max(0, wanted.bit_length() - 1))
    return chunk if chunk < rows.step.numel() else None


def _cut(rows: Rows, chunk: int, device: torch.device) -> _Chunks:
    counts = (rows.lengths + chunk - 1) // chunk
    heads = counts.cumsum(0) - counts
    segment = torch.repeat_interleave(torch.arange(counts.numel()), counts)
    begin = (torch.arange(segment.numel()) - heads[segment]) * chunk
    first = rows.first[segment]
    lengths = (rows.lengths[segment] - begin).clamp(max=chunk)
    joined = Rows(first=heads, lengths=counts, step=torch.arange(int(counts.max())))
    return _Chunks(
        pieces=_on(_pieces(first, begin, lengths, rows.step), device),
        joined=_on(
            _pieces(joined.first, torch.zeros_like(heads), joined.lengths, joined.step), device
        ),
        heads=heads.to(device),
        tails=(heads + counts - 1).to(device),
        row_before=(first + rows.step[(begin - 1).clamp(min=0)]).to(device),
        doublings=chunk.bit_length() - 1,
    )


def _pieces(first: Tensor, begin: Tensor, lengths: Tensor, step: Tensor) -> _Pieces:
    return _Pieces(first=first, begin=begin, lengths=lengths, step=step)


def _on(pieces: _Pieces, device: torch.device) -> _Pieces:
    tables = (pieces.first, pieces.begin, pieces.lengths, pieces.step)
    return _pieces(*(table.to(device) for table in tables))


def _power(lam: Tensor, doublings: int) -> Tensor:
    for _ in range(doublings):
        lam = lam * lam
    return lam


def _grid(pieces: _Pieces, channels: int) -> tuple[tuple[int, int], int]:
    """Return the programs of a launch and the channels of each."""
    block = min(LARGEST_BLOCK, triton.next_power_of_2(channels))
    return (len(pieces), triton.cdiv(channels, block)), block


def _forward(u: Tensor, lam: Tensor, before: Tensor, pieces: _Pieces, *, every_row: bool) -> Tensor:
    h = torch.empty_like(u if every_row else before)
    grid, block = _grid(pieces, u.shape[1])
    _advance[grid](
        *(torch.view_as_real(x) for x in (u, lam, before, h)),
        pieces.first,
        pieces.begin,
        pieces.lengths,
        pieces.step,
        u.shape[1],
        every_row=every_row,
        block=block,
    )
    return h


def _backward(
    grad: Tensor,
    lam: Tensor,
    after: Tensor,
    pieces: _Pieces,
    *,
    every_row: bool = True,
    states: tuple[Tensor, Tensor] | None = None,
) -> tuple[Tensor, Tensor]:
    """Return d and, given the states at all rows and before each piece, lambda's gradient."""
    d = torch.empty_like(grad if every_row else after)
    h, before = states or (after, after)  # not read without them
    d_lam = torch.empty_like(after)
    grid, block = _grid(pieces, grad.shape[1])
    _retreat[grid](
        *(torch.view_as_real(x) for x in (grad, lam, after, before, h, d, d_lam)),
        pieces.first,
        pieces.begin,
        pieces.lengths,
        pieces.step,
        grad.shape[1],
        every_row=every_row,
        with_lam=states is not None,
        block=block,
    )
    return d, d_lam
