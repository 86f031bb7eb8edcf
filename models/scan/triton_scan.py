"""The recurrence on CUDA, by Triton's kernels (`models.scan.triton_kernels`).

Where so few segments and channels go through time at once that the device's memory is not kept
busy, segments are cut into chunks of a power of two of positions, and the work is done in three
goes, each of them a scan:

1. every chunk from the zero state, which gives what it adds to the state after it;
2. these over the chunks of each segment, with lambda to the power of a chunk's length;
3. every chunk again, from the state that (2) gives before it.

The first go reads the input once more.
"""

import weakref
from dataclasses import dataclass

import torch
from torch import Tensor

from models.scan.layout import Rows
from models.scan.triton_kernels import Pieces, backward, forward
from models.transfers import to_device

THREADS_TO_FILL = 2**14
"""Channels at which `triton_kernels.AHEAD` rows of all of them, a megabyte, keep the memory of a
large device busy: half of what moves is written, which nothing waits for."""
SHORTEST_CHUNK = 16
"""Positions. Shorter chunks would make the second go cost as much as the others."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _Chunks:
    """How chunks make up segments, each segment's laid end to end."""

    joined: Pieces
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

    def __init__(self, chunk: int | None = None, device_type: str = "cuda") -> None:
        self.device_type = device_type
        self._chunk = chunk
        self._last: tuple[weakref.ref[Rows], int, Pieces, _Chunks | None] | None = None

    def forward(self, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows) -> Tensor:
        """Return the state at every row."""
        pieces, chunks = self._plan(rows, u)
        if chunks is None:
            return forward(u, lam, h0, pieces, every_row=True)
        zeros = u.new_zeros(len(pieces), u.shape[1])
        added = forward(u, lam, zeros, pieces, every_row=False)
        ends = forward(added, _power(lam, chunks.doublings), h0, chunks.joined, every_row=True)
        before = ends.roll(1, 0)
        before[chunks.heads] = h0
        return forward(u, lam, before, pieces, every_row=True)

    def backward(
        self, grad: Tensor, h: Tensor, lam: Tensor, h0: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in u and lambda."""
        pieces, chunks = self._plan(rows, h)
        if chunks is None:
            d, d_lam = backward(grad, lam, torch.zeros_like(h0), pieces, states=(h, h0))
            return d, d_lam.sum(0)
        zeros = h.new_zeros(len(pieces), h.shape[1])
        added, _ = backward(grad, lam, zeros, pieces, every_row=False)
        power = _power(lam, chunks.doublings)
        starts, _ = backward(added, power, torch.zeros_like(h0), chunks.joined)
        after = starts.roll(-1, 0)
        after.index_fill_(0, chunks.tails, 0)
        before = h[chunks.row_before]
        before[chunks.heads] = h0
        d, d_lam = backward(grad, lam, after, pieces, states=(h, before))
        return d, d_lam.sum(0)

    def _plan(self, rows: Rows, x: Tensor) -> tuple[Pieces, _Chunks | None]:
        """Return what the launches take; a model's blocks ask for the same again and again."""
        last = self._last
        if last is None or last[0]() is not rows or last[1] != x.shape[1]:
            chunk = self._chunk or _chunk_length(rows, x.shape[1])
            if chunk is None:
                last = (weakref.ref(rows), x.shape[1], _whole(rows, x.device), None)
            else:
                last = (weakref.ref(rows), x.shape[1], *_cut(rows, chunk, x.device))
            self._last = last
        return last[2], last[3]


def _chunk_length(rows: Rows, channels: int) -> int | None:
    """Choose the longest chunks that fill the device; None: no cutting."""
    if rows.lengths.numel() * channels >= THREADS_TO_FILL:
        return None
    wanted = int(rows.lengths.sum()) * channels // THREADS_TO_FILL
    chunk = max(SHORTEST_CHUNK, 1 << max(0, wanted.bit_length() - 1))
    return chunk if chunk < rows.step.numel() else None


def _whole(rows: Rows, device: torch.device) -> Pieces:
    ranks = torch.arange(rows.lengths.numel())
    tables = (ranks, torch.zeros_like(ranks), rows.lengths, rows.step)
    first, begin, lengths, step = _on(device, *tables)
    return Pieces(first=first, begin=begin, lengths=lengths, step=step)


def _cut(rows: Rows, chunk: int, device: torch.device) -> tuple[Pieces, _Chunks]:
    counts = (rows.lengths + chunk - 1) // chunk
    heads = counts.cumsum(0) - counts
    first = torch.repeat_interleave(torch.arange(counts.numel()), counts)  # the segment's rank
    begin = (torch.arange(first.numel()) - heads[first]) * chunk
    lengths = (rows.lengths[first] - begin).clamp(max=chunk)
    row_before = first + rows.step[(begin - 1).clamp(min=0)]
    nothing, chunks = torch.zeros_like(heads), torch.arange(int(counts.max()))
    of_pieces, of_joined = (first, begin, lengths, rows.step), (heads, nothing, counts, chunks)
    first, begin, lengths, step, heads, nothing, counts, chunks, tails, row_before = _on(
        device, *of_pieces, *of_joined, heads + counts - 1, row_before
    )
    return Pieces(first=first, begin=begin, lengths=lengths, step=step), _Chunks(
        joined=Pieces(first=heads, begin=nothing, lengths=counts, step=chunks),
        heads=heads,
        tails=tails,
        row_before=row_before,
        doublings=chunk.bit_length() - 1,
    )


def _on(device: torch.device, *tables: Tensor) -> list[Tensor]:
    """Bring tables to a device, all by one copy that no one waits for."""
    there = to_device(torch.cat(tables), device)
    return list(torch.split(there, [table.numel() for table in tables]))


def _power(lam: Tensor, doublings: int) -> Tensor:
    for _ in range(doublings):
        lam = lam * lam
    return lam
