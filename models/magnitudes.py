"""How large any number of a model in use can get, whatever its users do: a bound, not a trial.

Intervals go through the layers. A layer norm's output is at most sqrt(d) times its weights, so each
block's bound begins anew, and a state's is that of a geometric series: all items and histories of
any length are covered by one pass over the weights. Rounding is not counted: weights made so that a
layer norm cancels all but its rounding errors could exceed the bound.
"""

import math

import torch
from torch import Tensor, nn

from models.lru import Block
from models.recommender import Recommender

LARGEST = 1e16
"""Largest bound of a model that may serve: a layer norm sums the squares of up to 65,536 numbers,
and float32 ends at 3e38. Trained models come to some thousands."""
_LONGEST = 2.0**25
"""Terms that a sum in float32 can have before it stops growing: where |lambda| is rounded to 1."""


@torch.inference_mode()
def largest_number(recommender: Recommender) -> float:
    """Return a bound of every number between item and score, in evaluation mode.

    Embeddings, projections, states after histories of any length, outputs and scores of all items.

    Args:
        recommender: the model, on the CPU.

    Returns:
        NaN or infinity where a weight is, or where float32 does not hold a number.
    """
    embedding, bias = _of_columns(recommender.item_embedding), recommender.item_bias.abs().amax()
    bounds = [embedding.amax()]
    x = _norm(recommender.embedding_norm)
    for block in recommender.blocks:
        assert isinstance(block, Block)
        lru, feed_forward = block.lru, block.feed_forward
        u = _affine(*lru.input_projection(), x)
        modulus = torch.linalg.vector_norm(u.view(-1, 2), dim=1)
        left = 1 - lru.eigenvalues().abs().double()
        h = (modulus / left.clamp(min=1 / _LONGEST)).repeat_interleave(2)
        y = _affine(lru.out_weight, lru.out_bias, h) + x
        x = _norm(lru.norm)
        inner = _affine(feed_forward.weight_1, feed_forward.bias_1, x)
        z = _affine(feed_forward.weight_2, feed_forward.bias_2, inner) + x
        x = _norm(feed_forward.norm)
        bounds += [h.amax(), y.amax(), inner.amax(), z.amax(), x.amax()]
    bounds.append(embedding @ x + bias)
    return float(torch.stack(bounds).amax())  # which NaN passes through


def _of_columns(matrix: Tensor) -> Tensor:
    """Return the largest magnitude in each column, without a copy of a matrix of millions."""
    return torch.maximum(matrix.amin(0).abs(), matrix.amax(0).abs()).double()


def _affine(weight: Tensor, bias: Tensor, x: Tensor) -> Tensor:
    """Return the bounds (out,) of weight @ x + bias, and of every sum on the way."""
    return weight.abs().double() @ x + bias.abs().double()


def _norm(norm: nn.LayerNorm) -> Tensor:
    """Return the bounds (d,) of a layer norm's output, whatever goes in."""
    d = norm.weight.shape[0]
    return math.sqrt(d) * norm.weight.abs().double() + norm.bias.abs().double()
