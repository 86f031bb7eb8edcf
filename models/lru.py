"""One block of the model: the linear recurrent unit, and the feed-forward layer behind it.

Follows the authors' published code where it differs from the paper (Yue et al., WSDM 2024, arXiv
2310.02367; the unit is that of Orvieto et al., ICML 2023, arXiv 2303.06349): gamma and the complex
biases act at every step, the first included; the residual is added before the layer norm; there is
no GELU behind the second feed-forward layer.

Complex projections are real matrix products on *interleaved* rows: real and imaginary part of
channel j stand at 2j and 2j + 1, which is how torch stores complex numbers, so that neither way
costs a copy. Optimiser and gradient norm treat a complex number as its two parts anyway, so
training is that of complex parameters.
"""

import math

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.dropout import dropout
from models.scan import PackedLayout, scan_time_major
from models.shapes import Channels, PackedRows

RADIUS_MIN = 0.8
RADIUS_MAX = 0.99
"""Ring in which the eigenvalues start (r_min and r_max of the published configuration)."""


class LinearRecurrentUnit(nn.Module):
    """y = LayerNorm(dropout(Re(W_out h + b_out)) + x), where h is the recurrent state.

    h_t = lambda h_{t-1} + gamma (W_in x_t + b_in) with
    lambda = exp(-exp(nu_log) + i exp(theta_log)), so |lambda| < 1 whatever the parameters.
    """

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d, c = config.hidden_size, config.state_size
        self.nu_log = nn.Parameter(torch.empty(c))
        self.theta_log = nn.Parameter(torch.empty(c))
        self.gamma_log = nn.Parameter(torch.empty(c))
        self.in_weight = nn.Parameter(torch.empty(2 * c, d))
        """Interleaved rows: Re and Im of W_in."""
        self.in_bias = nn.Parameter(torch.empty(2 * c))
        """Interleaved: Re and Im of b_in."""
        self.out_weight = nn.Parameter(torch.empty(d, 2 * c))
        """Interleaved columns: Re and -Im of W_out, so that the product with h is the real part."""
        self.out_bias = nn.Parameter(torch.empty(d))
        """Re b_out; its imaginary part reaches no output."""
        self.norm = nn.LayerNorm(d)
        self.dropout = config.lru_dropout

    @torch.no_grad()
    def reset_eigenvalues(self, generator: torch.Generator | None = None) -> None:
        """Draw |lambda| uniformly over the ring's area and its angle uniformly; fit gamma to it."""
        radius, angle = 1 - torch.rand(2, *self.nu_log.shape, generator=generator)  # in (0, 1]
        squared = radius * (RADIUS_MAX**2 - RADIUS_MIN**2) + RADIUS_MIN**2
        self.nu_log.copy_(torch.log(-0.5 * torch.log(squared)))
        self.theta_log.copy_(torch.log(2 * math.pi * angle))
        self.gamma_log.copy_(0.5 * torch.log1p(-squared))

    def eigenvalues(self) -> Channels:
        """Return lambda, complex (c,)."""
        return torch.polar(torch.exp(-torch.exp(self.nu_log)), torch.exp(self.theta_log))

    def input_projection(self) -> tuple[Tensor, Tensor]:
        """Return W_in (2c, d) and b_in (2c,), both interleaved and times gamma.

        Scaling the weights is exact and spares a pass over all rows.
        """
        gamma = torch.exp(self.gamma_log).repeat_interleave(2)
        return self.in_weight * gamma[:, None], self.in_bias * gamma

    def forward(
        self, x: PackedRows, layout: PackedLayout, wanted: Tensor | None = None
    ) -> PackedRows:
        """Map time-major rows, each segment from the zero state.

        Args:
            x: the rows.
            layout: where they lie.
            wanted: int64, the rows to return alone; None: all.
        """
        # A state sums over all steps before it: no autocast comes near it.
        with torch.autocast(x.device.type, enabled=False):
            u = F.linear(x, *self.input_projection())  # (t, 2c)
            h = scan_time_major(
                torch.view_as_complex(u.view(-1, self.nu_log.shape[0], 2)),
                self.eigenvalues(),
                None,
                layout,
            )
            if wanted is not None:
                h, x = h[wanted], x[wanted]
            y = F.linear(torch.view_as_real(h).flatten(1), self.out_weight, self.out_bias)
            return self.norm(dropout(y, self.dropout, self.training) + x)  # type: ignore[no-any-return]  # nn.Module.__call__ has no types


class FeedForward(nn.Module):
    """y = LayerNorm(dropout(W_2 dropout(GELU(W_1 x + b_1)) + b_2) + x), 4d wide inside."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        d = config.hidden_size
        self.weight_1 = nn.Parameter(torch.empty(4 * d, d))
        self.bias_1 = nn.Parameter(torch.empty(4 * d))
        self.weight_2 = nn.Parameter(torch.empty(d, 4 * d))
        self.bias_2 = nn.Parameter(torch.empty(d))
        self.norm = nn.LayerNorm(d)
        self.dropout = config.dropout

    def forward(self, x: PackedRows) -> PackedRows:
        """Map each row by itself."""
        inner = F.gelu(F.linear(x, self.weight_1, self.bias_1))
        inner = dropout(inner, self.dropout, self.training)
        y = F.linear(inner, self.weight_2, self.bias_2)
        return self.norm(dropout(y, self.dropout, self.training) + x)  # type: ignore[no-any-return]  # nn.Module.__call__ has no types


class Block(nn.Module):
    """A linear recurrent unit and a feed-forward layer."""

    def __init__(self, config: ModelConfig) -> None:
        super().__init__()
        self.lru = LinearRecurrentUnit(config)
        self.feed_forward = FeedForward(config)

    def forward(
        self, x: PackedRows, layout: PackedLayout, wanted: Tensor | None = None
    ) -> PackedRows:
        """Map time-major rows, each segment from the zero state; return those wanted, else all."""
        return self.feed_forward(self.lru(x, layout, wanted))  # type: ignore[no-any-return]  # nn.Module.__call__ has no types
