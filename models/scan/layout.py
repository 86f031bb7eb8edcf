"""Where time-major rows lie, and the way from packed ones to them and back."""

from dataclasses import dataclass
from functools import cached_property

import torch
from torch import Tensor

from models.shapes import SegmentLengths


@dataclass(frozen=True, kw_only=True, eq=False)
class Rows:
    """Position t of the segment of rank r is at row `step[t] + r`. All tensors are on the CPU."""

    lengths: Tensor
    """int64 (s,): positions of the segment at each rank, at least 1; never increasing."""
    step: Tensor
    """int64 (longest,): the first row of each step."""
    batch_sizes: tuple[int, ...]
    """Active segments at each step; never increasing."""


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

    @cached_property
    def rows(self) -> Rows:
        """Where the rows lie, as kernels are told."""
        active = torch.tensor(self.batch_sizes, dtype=torch.int64)
        ranks = torch.arange(self.batch_sizes[0] if self.batch_sizes else 0)
        return Rows(
            # As long as there are steps with more segments than the rank; they are sorted.
            lengths=torch.searchsorted(-active, -ranks),
            step=active.cumsum(0) - active,
            batch_sizes=self.batch_sizes,
        )
