"""Matrix products of numbers with fewer bits, whose results are held and summed in those of `out`.

bfloat16 has the exponent of float32 and 8 bits of its mantissa: a product's relative error is about
1/256 a term, of random sign, and nothing overflows that would not in float32.
"""

import torch
from torch import Tensor


def multiply_into(out: Tensor, a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    """Write the matrix product of a and b, taken in `kind`, to `out`, and return that."""
    a, b = a.to(kind), b.to(kind)
    if kind == out.dtype:
        return torch.mm(a, b, out=out)
    return out.copy_(torch.mm(a, b))


def add_product(out: Tensor, a: Tensor, b: Tensor, kind: torch.dtype) -> Tensor:
    """Add the matrix product of a and b, taken in `kind`, to `out`, and return that."""
    a, b = a.to(kind), b.to(kind)
    if kind == out.dtype:
        return out.addmm_(a, b)
    return out.add_(torch.mm(a, b))
