"""Weights of one block as serving uses them: copied, folded, laid out for few rows."""

from dataclasses import dataclass

import torch
from torch import Tensor

from models.lru import Block


@dataclass(frozen=True, kw_only=True, eq=False)
class FoldedBlock:
    """Weights of one block, float32; matrices as (in, out), bias first as addmm wants it.

    The input of the recurrence has gamma folded into it.
    """

    lam: Tensor
    recurrent_in: tuple[Tensor, Tensor]
    recurrent_out: tuple[Tensor, Tensor]
    recurrent_norm: tuple[Tensor, Tensor]
    inner: tuple[Tensor, Tensor]
    outer: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]

    @classmethod
    def fold(cls, block: Block, device: torch.device) -> "FoldedBlock":
        """Copy a block's weights to a device."""

        def affine(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            # Rows by input: for few rows, matrix products read it nearly twice as fast.
            return copy(bias), copy(weight).t().contiguous()

        def copy(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, torch.float32, copy=True)

        lru, feed_forward = block.lru, block.feed_forward
        return cls(
            lam=lru.eigenvalues().detach().to(device, torch.complex64),
            recurrent_in=affine(*lru.input_projection()),
            recurrent_out=affine(lru.out_weight, lru.out_bias),
            recurrent_norm=(copy(lru.norm.weight), copy(lru.norm.bias)),
            inner=affine(feed_forward.weight_1, feed_forward.bias_1),
            outer=affine(feed_forward.weight_2, feed_forward.bias_2),
            norm=(copy(feed_forward.norm.weight), copy(feed_forward.norm.bias)),
        )
