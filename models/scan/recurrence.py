"""The recurrence for those who use it: one step, or a scan by the fastest form at hand.

On CUDA that is Triton's kernel where Triton runs; on the CPU the loop over time, or the
native form within `use_backend` (it has to be compiled, which nobody should wait for unasked).
"""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from contextvars import ContextVar
from functools import cache
from typing import Any, Protocol

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable

from models.scan.layout import PackedLayout, Rows
from models.scan.loop import LoopScan
from models.shapes import Channels, PackedChannels, SegmentLengths, SegmentStates


class Backend(Protocol):
    """One way to compute the recurrence and its gradients.

    Tensors come contiguous, of one complex dtype, on one device, their sizes checked; there is at
    least one row. The same input gives the same bits, with any number of threads.

    With g_t the gradient of the loss in h_t by torch's convention (d/d re + i d/d im) and d_t that
    of everything from h_t on: d_t = g_t + conj(lambda) * d_{t+1}. Then the gradients in u_t, lambda
    and h_0 are d_t, sum_t d_t * conj(h_{t-1}) and conj(lambda) * d_1.
    """

    @property
    def name(self) -> str:
        """What a log should call it."""

    @property
    def device_type(self) -> str | None:
        """Where it runs, cpu or cuda; None: anywhere."""

    def forward(self, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows) -> Tensor:
        """Return h (t, c), for u (t, c), lambda (c,) and h0 (s, c), time-major."""

    def backward(
        self, grad: Tensor, h: Tensor, lam: Tensor, h0: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in u (t, c) and lambda (c,), for that in h (t, c)."""


_LOOP = LoopScan()

_log = logging.getLogger(__name__)

_chosen: ContextVar[Backend | None] = ContextVar("scan_backend", default=None)


@contextmanager
def use_backend(backend: Backend) -> Iterator[None]:
    """Scan by this form inside, in this thread or task, wherever it can run."""
    token = _chosen.set(backend)
    try:
        yield
    finally:
        _chosen.reset(token)


def backend_for(device: torch.device) -> Backend:
    """Return the form by which a scan on that device would run here and now."""
    chosen = _chosen.get()
    if chosen is not None and chosen.device_type in (None, device.type):
        return chosen
    return (device.type == "cuda" and _triton(device)) or _LOOP


@cache
def _triton(device: torch.device) -> Backend | None:
    try:
        from models.scan.triton_scan import TritonScan
    except ImportError:
        return None
    form = TritonScan()
    try:  # the first launch needs a C compiler and Python's headers
        with torch.cuda.device(device):
            one = torch.ones(1, 1, dtype=torch.complex64, device=device)
            form.forward(one, one[0], one, PackedLayout.from_lengths(torch.tensor([1])).rows)
    except Exception as error:  # whatever Triton or the driver raise
        reason = str(error).partition("\n")[0]
        _log.warning("scans go by the loop, no Triton: %s: %s", type(error).__name__, reason)
        return None
    return form


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
        ValueError: a length is below 1, the lengths do not add up to t, or shapes, dtypes or
            devices do not fit together.
    """
    if int(lengths.sum()) != u.shape[0]:
        msg = f"lengths must add up to the {u.shape[0]} rows of u, got {int(lengths.sum())}"
        raise ValueError(msg)
    if len(h0) != lengths.numel():
        msg = f"h0 must have a row for each of {lengths.numel()} segments, got {len(h0)}"
        raise ValueError(msg)
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

    Raises:
        ValueError: shapes, dtypes or devices do not fit together.
    """
    segments, count = len(layout.order), len(layout.to_time_major)
    if h0 is None:
        h0 = u.new_zeros(segments, u.shape[1])
    wanted = [("u", u, (count, u.shape[1])), ("lam", lam, u.shape[1:])]
    wanted.append(("h0", h0, (segments, u.shape[1])))
    for name, tensor, shape in wanted:
        kind = tensor.dtype, tensor.device
        if tensor.shape != shape or kind != (u.dtype, u.device):
            msg = (
                f"{name} must be {u.dtype} {tuple(shape)} on {u.device}, "
                f"got {tensor.dtype} {tuple(tensor.shape)} on {tensor.device}"
            )
            raise ValueError(msg)
    if u.numel() == 0:
        return u
    h: Tensor = _Scan.apply(u, lam, h0, layout.rows, backend_for(u.device))
    return h


def _plain(x: Tensor) -> Tensor:
    """Lay out a tensor as kernels want it; a copy only where it must be."""
    return x.resolve_conj().resolve_neg().contiguous()


class _Scan(torch.autograd.Function):
    """One form's forward and backward pass. The form of the forward pass also goes backward."""

    @staticmethod
    def forward(
        ctx: Any, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows, backend: Backend
    ) -> Tensor:
        u, lam, h0 = _plain(u), _plain(lam), _plain(h0)
        h = backend.forward(u, lam, h0, rows)
        ctx.save_for_backward(h, lam, h0)
        ctx.rows, ctx.backend = rows, backend
        return h

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, grad: Tensor) -> tuple[Tensor, Tensor, Tensor | None, None, None]:
        h, lam, h0 = ctx.saved_tensors
        d, d_lam = ctx.backend.backward(_plain(grad), h, lam, h0, ctx.rows)
        d_h0 = lam.conj() * d[: len(h0)] if ctx.needs_input_grad[2] else None
        return d, d_lam, d_h0, None, None
