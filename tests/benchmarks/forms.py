"""The published model in its own form, to compare with, and batches as it takes them.

What the published code does (Yue et al., WSDM 2024): windows padded to one length, and inside the
blocks to a power of two, complex projections of activations cast to complex, the recurrence by
recursive doubling, logits for every position, and torch's cross-entropy over them.
"""

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.lru import Block
from models.packing import PAD, Indices, TrainingWindows
from models.recommender import Recommender
from models.scan import scan_doubling


class PublishedBlock(nn.Module):
    """One block on padded batches, with complex parameters."""

    def __init__(self, block: Block, dropout: float) -> None:
        super().__init__()
        lru, feed_forward = block.lru, block.feed_forward
        channels = lru.nu_log.numel()
        self.dropout = dropout
        self.params_log = nn.Parameter(torch.stack((lru.nu_log, lru.theta_log, lru.gamma_log)))
        parts = lru.in_weight.view(channels, 2, -1)
        self.in_weight = nn.Parameter(torch.complex(parts[:, 0], parts[:, 1]))
        self.in_bias = nn.Parameter(torch.view_as_complex(lru.in_bias.view(channels, 2)))
        self.out_weight = nn.Parameter(
            torch.complex(lru.out_weight[:, 0::2], -lru.out_weight[:, 1::2])
        )
        self.out_bias = nn.Parameter(torch.complex(lru.out_bias, torch.zeros_like(lru.out_bias)))
        self.norm_1 = nn.LayerNorm(lru.out_bias.numel())
        self.linear_1 = nn.Linear(*feed_forward.weight_1.shape[::-1])
        self.linear_2 = nn.Linear(*feed_forward.weight_2.shape[::-1])
        self.norm_2 = nn.LayerNorm(lru.out_bias.numel())
        copies = [
            (self.norm_1.weight, lru.norm.weight),
            (self.norm_1.bias, lru.norm.bias),
            (self.linear_1.weight, feed_forward.weight_1),
            (self.linear_1.bias, feed_forward.bias_1),
            (self.linear_2.weight, feed_forward.weight_2),
            (self.linear_2.bias, feed_forward.bias_2),
            (self.norm_2.weight, feed_forward.norm.weight),
            (self.norm_2.bias, feed_forward.norm.bias),
        ]
        for own, source in copies:
            own.copy_(source)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Map (n, l, d) with mask (n, l)."""
        nu, theta, gamma = torch.exp(self.params_log)
        u = F.linear(x.to(torch.complex64), self.in_weight, self.in_bias) * gamma
        h = scan_doubling(u, torch.exp(torch.complex(-nu, theta)), real)
        y = F.linear(h, self.out_weight, self.out_bias).real
        x = self.norm_1(F.dropout(y, self.dropout, self.training) + x)
        inner = F.dropout(F.gelu(self.linear_1(x)), self.dropout, self.training)
        return self.norm_2(F.dropout(self.linear_2(inner), self.dropout, self.training) + x)

    def gradients(self) -> list[Tensor]:
        """Return gradients in the order and form of a Block's parameters."""
        in_weight, in_bias = self.in_weight.grad, self.in_bias.grad
        out_weight = self.out_weight.grad.conj().resolve_conj()
        return [
            *self.params_log.grad,
            torch.view_as_real(in_weight).transpose(1, 2).flatten(0, 1),
            torch.view_as_real(in_bias).flatten(),
            torch.view_as_real(out_weight).flatten(1),
            self.out_bias.grad.real,
            *(p.grad for p in self.norm_1.parameters()),
            *(p.grad for p in self.linear_1.parameters()),
            *(p.grad for p in self.linear_2.parameters()),
            *(p.grad for p in self.norm_2.parameters()),
        ]


class PublishedRecommender(nn.Module):
    """The whole model on padded batches, with the weights of a Recommender."""

    @torch.no_grad()
    def __init__(self, recommender: Recommender) -> None:
        super().__init__()
        self.dropout = recommender.config.dropout
        self.token = nn.Parameter(recommender.item_embedding.clone())
        self.bias = nn.Parameter(recommender.item_bias.clone())
        self.norm = nn.LayerNorm(recommender.config.hidden_size)
        self.norm.load_state_dict(recommender.embedding_norm.state_dict())
        self.blocks = nn.ModuleList(
            PublishedBlock(block, self.dropout) for block in recommender.blocks
        )

    def forward(self, items: Tensor) -> Tensor:
        """Return the outputs (n, l, d) of windows (n, l)."""
        x = self.norm(F.dropout(F.embedding(items, self.token), self.dropout, self.training))
        length = items.shape[1]
        missing = (1 << (length - 1).bit_length()) - length
        x, real = F.pad(x, (0, 0, missing, 0)), F.pad(items != PAD, (missing, 0))
        for block in self.blocks:
            x = block(x, real)
        return x[:, missing:]

    def loss(self, items: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over the labels that are not pads."""
        logits = F.linear(self(items), self.token, self.bias)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD)

    def gradients(self) -> list[Tensor]:
        """Return gradients in the order and form of a Recommender's parameters."""
        return [
            self.token.grad,
            self.bias.grad,
            *(p.grad for p in self.norm.parameters()),
            *(gradient for block in self.blocks for gradient in block.gradients()),
        ]


def padded(
    windows: TrainingWindows, chosen: Indices, length: int, *, before: bool
) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of windows, both (n, length), pads before or behind them."""
    items = np.full((chosen.size, length), PAD)
    labels = np.full((chosen.size, length), PAD)
    for row, window in enumerate(chosen):
        start, count = windows.starts[window], windows.counts[window]
        cold, first = int(windows.cold[window]), length - count if before else 0
        labels[row, first : first + count] = windows.events[start : start + count]
        inputs = windows.events[start - 1 + cold : start + count - 1]
        items[row, first + cold : first + count] = inputs
    return torch.from_numpy(items), torch.from_numpy(labels)
