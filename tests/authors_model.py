"""The published model in its own form: padded batches, complex weights, recursive doubling.

An independent oracle for `models`: it shares the recurrence `scan_doubling` (itself held to
`scan_reference`) and nothing else.
"""

import torch
from torch import Tensor
from torch.nn import functional as F

from models.scan import scan_doubling


def random_weights(
    seed: int, *, n_items: int, hidden_size: int, state_size: int, n_blocks: int
) -> dict[str, Tensor]:
    """Draw a state_dict as their code saves it, large enough that every weight matters."""
    generator = torch.Generator().manual_seed(seed)
    v, d, c = n_items + 1, hidden_size, state_size

    def real(*shape: int) -> Tensor:
        return 0.4 * torch.randn(shape, generator=generator)

    def complex_(*shape: int) -> Tensor:
        return torch.complex(real(*shape), real(*shape))

    weights = {
        "embedding.token.weight": real(v, d),
        "embedding.layer_norm.weight": 1 + real(d),
        "embedding.layer_norm.bias": real(d),
        "model.bias": real(v),
    }
    for index in range(n_blocks):
        block = f"model.lru_blocks.{index}"
        angles = torch.tensor([[-2.0], [0.5], [-0.5]])  # |lambda| about 0.87, gamma about 0.6
        weights |= {
            f"{block}.lru_layer.params_log": angles + real(3, c),
            f"{block}.lru_layer.in_proj.weight": complex_(c, d),
            f"{block}.lru_layer.in_proj.bias": complex_(c),
            f"{block}.lru_layer.out_proj.weight": complex_(d, c),
            f"{block}.lru_layer.out_proj.bias": complex_(d),
            f"{block}.lru_layer.layer_norm.weight": 1 + real(d),
            f"{block}.lru_layer.layer_norm.bias": real(d),
            f"{block}.feed_forward.w_1.weight": real(4 * d, d),
            f"{block}.feed_forward.w_1.bias": real(4 * d),
            f"{block}.feed_forward.w_2.weight": real(d, 4 * d),
            f"{block}.feed_forward.w_2.bias": real(d),
            f"{block}.feed_forward.layer_norm.weight": 1 + real(d),
            f"{block}.feed_forward.layer_norm.bias": real(d),
        }
    return weights


def outputs(weights: dict[str, Tensor], tokens: Tensor) -> Tensor:
    """Return the outputs (n, l, d) of left-padded tokens (n, l), without dropout."""
    real = tokens > 0
    x = _norm(F.embedding(tokens, weights["embedding.token.weight"]), weights, "embedding")
    n_blocks = sum(name.endswith("params_log") for name in weights)
    for index in range(n_blocks):
        lru, feed_forward = (
            f"model.lru_blocks.{index}.{part}" for part in ("lru_layer", "feed_forward")
        )
        nu, theta, gamma = torch.exp(weights[f"{lru}.params_log"])
        lam = torch.exp(torch.complex(-nu, theta))
        u = F.linear(x.to(lam.dtype), *_affine(weights, f"{lru}.in_proj")) * gamma
        h = scan_doubling(u, lam, real)
        y = F.linear(h, *_affine(weights, f"{lru}.out_proj")).real
        x = _norm(y + x, weights, lru)
        y = F.gelu(F.linear(x, *_affine(weights, f"{feed_forward}.w_1")))
        x = _norm(F.linear(y, *_affine(weights, f"{feed_forward}.w_2")) + x, weights, feed_forward)
    return x


def left_padded(sequences: list[list[int]], length: int) -> Tensor:
    """Return int64 (n, length): each sequence's items at the end, zeros before."""
    return torch.tensor([[0] * (length - len(items)) + items for items in sequences])


def _affine(weights: dict[str, Tensor], name: str) -> tuple[Tensor, Tensor]:
    return weights[f"{name}.weight"], weights[f"{name}.bias"]


def _norm(x: Tensor, weights: dict[str, Tensor], name: str) -> Tensor:
    return F.layer_norm(x, x.shape[-1:], *_affine(weights, f"{name}.layer_norm"))
