"""The k best items for each user, exactly, by a first pass in bfloat16: for tensor cores.

One product of matrices in bfloat16 gives a bound of every score from above. The items of the
highest bounds are scored in float32; where the k-th best of those exceeds every other item's bound,
no other item is among the best. Users of whom that cannot be said are found by `top_k`.

The bound. For one user and one item, let u and w be the float32 vectors of d numbers, b the bias,
u' and w' what bfloat16 makes of the vectors. All norms are Euclidean. A float32 score s, its terms
added in any order, has

    s <= b + u w + (d + 2) 2^-24 (|b| + |u| |w|),     u w <= u' w' + |u| |w - w'| + |u - u'| |w'|.

Both are at most the product of two longer vectors (D numbers, a multiple of 8), plus bfloat16's b',

    (u', 1, |u|, |u - u'| + G |u|)   and   (w', b - b' + G |b| + 2^-60, |w - w'|, max(|w|, |w'|)),

each of whose last numbers is rounded up by so much that a product of two is larger by 2^-9. The
device adds those terms in float32 in whatever order, and we grant it an error of 2^-22 of the sum
of all their sizes for each addition (tensor cores cut off what others round): with G = D 2^-20, the
bound has room for that and for the (d + 2) 2^-24 above. Norms are at most 1e15: what underflows, or
is so small that it is read as zero, is less than 2^-60. Rounding a bound y to bfloat16 changes it
by less than 2^-7 |y|, even if it is cut off; so y + 2^-7 |y| is compared.
"""

import math
from dataclasses import dataclass

import torch
from torch import Tensor

from models.serving.top_k import best_items, check_arguments, top_k
from models.shapes import ExcludedItems, TopItems, TopScores, UserOutputs, VocabularyFlags
from models.transfers import to_device

MIN_ROUNDED_ITEMS = 65_536
"""Items from which on CUDA finds lists so. A guess: it was not timed on a GPU."""

LARGEST_NORM, LARGEST_WIDTH = 1e15, 1024

MIN_CAPABILITY = (8, 0)
"""Of CUDA devices: from here on, tensor cores take bfloat16."""


@dataclass(frozen=True, kw_only=True)
class RoundedItems:
    """The items of one model in bfloat16, with what bounds take; 2 (d + 10) bytes an item at most.

    Attributes:
        weight: float32 (v, d), what it was made of.
        bias: float32 (v,), likewise.
        rounded: bfloat16 (v, D), the longer vectors.
    """

    weight: Tensor
    bias: Tensor
    rounded: Tensor

    @classmethod
    def of(cls, weight: Tensor, bias: Tensor) -> "RoundedItems | None":
        """Round the items of a model, on any device; None where there are no bounds of scores."""
        if weight.shape[1] > LARGEST_WIDTH:
            return None
        near, rest, most = _round(weight)
        withdrawn = bias == -math.inf
        size = bias.masked_fill(withdrawn, 0).abs()
        if not bool((most <= LARGEST_NORM).all() & (size <= LARGEST_NORM).all()):  # NaNs, too
            return None
        slack = _slack(weight.shape[1])
        start = bias.double() - bias.bfloat16().double() + slack * size.double() + 2**-60
        start = start.masked_fill(withdrawn, 0)
        columns = torch.stack([_up(start), _up(rest), _up(most)], 1)
        return cls(weight=weight, bias=bias, rounded=_side_by_side(near, columns))

    @classmethod
    def for_device(cls, weight: Tensor, bias: Tensor) -> "RoundedItems | None":
        """Round the items where that is of use: many of them, on CUDA with tensor cores.

        Tells torch, for this process, that sums in bfloat16 are not to be rounded on their way.
        """
        if weight.device.type != "cuda" or weight.shape[0] < MIN_ROUNDED_ITEMS:
            return None
        if torch.cuda.get_device_capability(weight.device) < MIN_CAPABILITY:
            return None
        torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False
        return cls.of(weight, bias)

    def top_k(
        self,
        outputs: UserOutputs,
        k: int,
        excluded: ExcludedItems | None,
        unavailable: VocabularyFlags | None,
    ) -> tuple[TopScores, TopItems]:
        """Do what `top_k.top_k` does with these weights; waits for the device once."""
        v, kept = self.weight.shape[0], 4 * k + 24
        check_arguments(v, k, excluded)
        if excluded is not None:
            excluded = to_device(excluded, self.weight.device)
        cut_sums = torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction
        if 8 * kept > v or (outputs.is_cuda and cut_sums):
            return top_k(outputs, self.weight, self.bias, k, excluded, unavailable)
        bounds, found = self.highest_bounds(outputs, kept, excluded, unavailable)
        # Not a product of matrices: those may be told to round float32 to TF32.
        scores = (self.weight[found] * outputs[:, None]).sum(2) + self.bias[found]
        scores = scores.masked_fill(bounds == -math.inf, -math.inf)
        best, places = scores.topk(k)
        items = found.gather(1, places).masked_fill(best == -math.inf, 0)
        least = bounds[:, -1]
        is_proven = (least < best[:, -1]) | (least == -math.inf)
        is_proven &= torch.linalg.vector_norm(outputs, dim=1, dtype=torch.float64) <= LARGEST_NORM
        rest = (~is_proven).nonzero()[:, 0]
        if len(rest):
            best[rest], items[rest] = top_k(
                outputs[rest],
                self.weight,
                self.bias,
                k,
                None if excluded is None else excluded[rest],
                unavailable,
            )
        return best, items

    def highest_bounds(
        self,
        outputs: UserOutputs,
        kept: int,
        excluded: ExcludedItems | None,
        unavailable: VocabularyFlags | None,
    ) -> tuple[Tensor, Tensor]:
        """Return the highest bounds of each user's scores, float32 (u, kept), and their items.

        Valid for outputs of a norm of at most `LARGEST_NORM`; as `top_k`, -inf and item 0 where
        there are no more items.
        """
        near, rest, _ = _round(outputs)
        size = torch.linalg.vector_norm(outputs, dim=1, dtype=torch.float64)
        slack = _slack(outputs.shape[1])
        columns = [torch.ones_like(near[:, 0]), _up(size), _up(rest + slack * size)]
        bias = self.bias.bfloat16()
        if unavailable is not None:
            bias = bias.masked_fill(unavailable, -math.inf)
        rounded = _side_by_side(near, torch.stack(columns, 1))
        found, items = best_items(rounded, self.rounded, bias, kept, excluded)
        bounds = found.float()
        return torch.where(bounds == -math.inf, bounds, bounds + bounds.abs() * 2**-7), items


def _round(vectors: Tensor) -> tuple[Tensor, Tensor, Tensor]:
    """Return them in bfloat16, and the norms of what that leaves and of the larger of the two."""
    near = vectors.bfloat16()
    rest, exact, rounded = (
        torch.linalg.vector_norm(of, dim=1, dtype=torch.float64)
        for of in (vectors - near.float(), vectors, near)
    )
    return near, rest, torch.maximum(exact, rounded)


def _up(number: Tensor) -> Tensor:
    """Round float64 to a bfloat16 above it, a positive one by 2^-9 of it at least."""
    return (number + number.abs() * 2**-7 + 2**-100).bfloat16()


def _depth(width: int) -> int:
    return -(-(width + 3) // 8) * 8


def _slack(width: int) -> float:
    """Return G."""
    return _depth(width) * 2**-20


def _side_by_side(near: Tensor, columns: Tensor) -> Tensor:
    joined = torch.cat([near, columns], 1)
    return torch.nn.functional.pad(joined, (0, _depth(near.shape[1]) - joined.shape[1]))
