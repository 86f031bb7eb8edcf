"""The LRURec model for training and evaluation: packed sequences in, one vector per position out.

Serving uses `models.serving`, which computes the same from folded weights, step by step.
"""

import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.config import ModelConfig
from models.dropout import dropout
from models.lru import Block
from models.scan import PackedLayout
from models.shapes import PackedItems, PackedRows, PackedScores, SegmentLengths

INIT_STD = 0.02
INIT_CUT = 0.04


class Recommender(nn.Module):
    """LRURec, as its authors' code computes it (see `models.lru`).

    Item 0 is the pad token, a trained row like any other. What it stands for is "nothing before":
    its output from the zero state scores a user's first item, and the state it leaves is dropped.
    So a pad is a **segment of its own, of length 1, item [0]**; a real sequence is another segment,
    which starts from the zero state like every segment. To train "pad predicts the first item" for
    a sequence i1 i2 i3, pack items [0, i1, i2] with lengths [1, 2] and targets [i1, i2, i3].

    Initial weights: normal with standard deviation 0.02, cut at 0.04, for everything but layer
    norms (1 and 0) and eigenvalues (`LinearRecurrentUnit.reset_eigenvalues`).

    Args:
        config: the sizes.
        generator: source of the initial weights (on the CPU); None: torch's global one.
    """

    def __init__(self, config: ModelConfig, generator: torch.Generator | None = None) -> None:
        super().__init__()
        self.config = config
        self.item_embedding = nn.Parameter(torch.empty(config.n_items + 1, config.hidden_size))
        self.item_bias = nn.Parameter(torch.empty(config.n_items + 1))
        self.embedding_norm = nn.LayerNorm(config.hidden_size)
        self.blocks = nn.ModuleList(Block(config) for _ in range(config.n_blocks))
        self._reset_parameters(generator)

    def _reset_parameters(self, generator: torch.Generator | None) -> None:
        norms = {
            parameter
            for module in self.modules()
            if isinstance(module, nn.LayerNorm)
            for parameter in module.parameters()
        }
        for parameter in self.parameters():
            if parameter not in norms:
                nn.init.trunc_normal_(
                    parameter, std=INIT_STD, a=-INIT_CUT, b=INIT_CUT, generator=generator
                )
        for block in self.blocks:
            assert isinstance(block, Block)
            block.lru.reset_eigenvalues(generator)

    def forward(self, items: PackedItems, lengths: SegmentLengths) -> PackedRows:
        """Return the output at every position of packed segments.

        Args:
            items: indices in 0..n_items, segment after segment, oldest first.
            lengths: rows of each segment, at least 1, their sum t.

        Returns:
            float (t, d), in the order of `items`.

        Raises:
            ValueError: a length is below 1, or the lengths do not add up to t.
        """
        if int(lengths.sum()) != items.shape[0]:
            msg = f"lengths must add up to the {items.shape[0]} items, got {int(lengths.sum())}"
            raise ValueError(msg)
        layout = PackedLayout.from_lengths(lengths, items.device)
        return self.forward_time_major(items[layout.to_time_major], layout)[layout.to_packed]

    def forward_time_major(
        self, items: PackedItems, layout: PackedLayout, wanted: Tensor | None = None
    ) -> PackedRows:
        """Do what `forward` does for items and outputs that lie time-major: no reordering.

        Args:
            items: indices in 0..n_items, time-major.
            layout: where they lie.
            wanted: int64, the time-major rows whose outputs are to be returned; None: all. Behind
                the last recurrence nothing is computed for the others.
        """
        x: Tensor = F.embedding(items, self.item_embedding)
        x = self.embedding_norm(dropout(x, self.config.dropout, self.training))
        last = len(self.blocks) - 1
        for number, block in enumerate(self.blocks):
            x = block(x, layout, wanted if number == last else None)
        return x

    def scores(self, outputs: PackedRows) -> PackedScores:
        """Return the score of every item as the next one, float (t, n_items + 1); 0 is the pad."""
        return F.linear(outputs, self.item_embedding, self.item_bias)
