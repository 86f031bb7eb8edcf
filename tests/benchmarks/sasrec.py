"""A recommender by self-attention to compare with, as a user would write it in torch.

SASRec (Kang and McAuley, ICDM 2018): learned positions, and blocks of causal attention with one
head and a feed-forward layer of the same width, each with a layer norm before and a residual
around it. Attention is torch's own fused one, and windows are padded at their end, so that no mask
is needed but the causal one. Whoever serves it encodes a user's last items anew at every event.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

INIT_STD = 0.02


class SasrecBlock(nn.Module):
    """Attention, then a feed-forward layer."""

    def __init__(self, width: int, dropout: float) -> None:
        super().__init__()
        self.norm_1, self.norm_2 = nn.LayerNorm(width), nn.LayerNorm(width)
        self.query = nn.Linear(width, width)
        self.key_value = nn.Linear(width, 2 * width)
        self.linear_1, self.linear_2 = nn.Linear(width, width), nn.Linear(width, width)
        self.dropout = dropout

    def forward(self, x: Tensor, last: bool = False) -> Tensor:
        """Map (n, l, d) to as much, or to the last position alone, (n, 1, d)."""
        keys, values = self.key_value(x).chunk(2, -1)
        own = self.norm_1(x[:, -1:] if last else x)
        # The last position sees everything: no mask.
        attended = F.scaled_dot_product_attention(
            self.query(own)[:, None],
            keys[:, None],
            values[:, None],
            dropout_p=self.dropout if self.training else 0.0,
            is_causal=not last,
        )
        x = self.norm_2(own + attended[:, 0])
        inner = F.dropout(F.relu(self.linear_1(x)), self.dropout, self.training)
        return x + F.dropout(self.linear_2(inner), self.dropout, self.training)


class Sasrec(nn.Module):
    """Items in, one vector a position out.

    Args:
        n_items: items; 0 is the pad token.
        width: of embeddings and activations.
        length: positions at most.
        n_blocks: at least 1.
        dropout: of embedding, attention and feed-forward layers.
        generator: of the initial weights.
    """

    def __init__(
        self,
        n_items: int,
        width: int,
        length: int,
        n_blocks: int,
        dropout: float,
        generator: torch.Generator,
    ) -> None:
        super().__init__()
        self.token = nn.Parameter(torch.empty(n_items + 1, width))
        self.position = nn.Parameter(torch.empty(length, width))
        self.blocks = nn.ModuleList(SasrecBlock(width, dropout) for _ in range(n_blocks))
        self.norm = nn.LayerNorm(width)
        self.dropout = dropout
        for name, parameter in self.named_parameters():
            if "norm" not in name:
                nn.init.normal_(parameter, std=INIT_STD, generator=generator)

    def forward(self, items: Tensor) -> Tensor:
        """Return the outputs (n, l, d) of windows (n, l)."""
        x = self._embed(items)
        for block in self.blocks:
            x = block(x)
        return self.norm(x)

    def encode(self, items: Tensor) -> Tensor:
        """Return the output (n, d) after whole windows (n, l): the last block computes no other."""
        x = self._embed(items)
        *blocks, last = self.blocks
        for block in blocks:
            x = block(x)
        return self.norm(last(x, last=True))[:, 0]

    def loss(self, items: Tensor, labels: Tensor, pad: int) -> Tensor:
        """Return the mean cross-entropy over the labels that are not pads, without bias."""
        real = labels != pad
        return F.cross_entropy(F.linear(self(items)[real], self.token), labels[real])

    def _embed(self, items: Tensor) -> Tensor:
        x = F.embedding(items, self.token) * self.token.shape[1] ** 0.5
        return F.dropout(x + self.position[: items.shape[1]], self.dropout, self.training)
