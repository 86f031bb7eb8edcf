"""The recurrence as one pass of torch operations over time: no compiler, any device."""

import torch
from torch import Tensor

from models.scan.layout import Rows


class LoopScan:
    """One operation a step, forwards and, by hand, backwards.

    A step is one contiguous block of rows, and the one before is still in the processor's cache.
    """

    name = "loop"
    device_type = None

    def forward(self, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows) -> Tensor:
        """Return the state at every row."""
        batch_sizes = list(rows.batch_sizes)
        h = torch.empty_like(u)
        inputs, states = torch.split(u, batch_sizes), torch.split(h, batch_sizes)
        before = h0
        for row, state, active in zip(inputs, states, batch_sizes, strict=True):
            torch.addcmul(row, lam, before[:active], out=state)
            before = state
        return h

    def backward(
        self, grad: Tensor, h: Tensor, lam: Tensor, h0: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in u and lambda."""
        batch_sizes = list(rows.batch_sizes)
        lam_conj = lam.conj().resolve_conj()
        d = torch.empty_like(h)
        grads, states, ds = (torch.split(x, batch_sizes) for x in (grad, h, d))
        # lambda's gradient is summed over time here, while the rows are in the processor's cache,
        # and over segments at the end. torch has no fused conjugate product, hence `before_conj`.
        d_lam = torch.zeros_like(h0)
        before_conj = torch.empty_like(h0)
        later = 0
        for now in reversed(range(len(batch_sizes))):
            active = batch_sizes[now]
            if later:
                torch.addcmul(grads[now][:later], lam_conj, ds[now + 1], out=ds[now][:later])
            if later < active:
                ds[now][later:].copy_(grads[now][later:])
            before = states[now - 1] if now else h0
            torch.conj_physical(before[:active], out=before_conj[:active])
            d_lam[:active].addcmul_(ds[now], before_conj[:active])
            later = active
        return d, d_lam.sum(0)
