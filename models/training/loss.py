"""Cross-entropy over every item of the vocabulary, without ever holding all the logits.

The logits of a batch are by far its largest tensor (positions x items), and going through it again
and again is what makes the plain form slow. Here a chunk of positions is scored, turned into its
loss and into all three gradients, and forgotten; the backward pass only scales the gradients.
"""

import math
from typing import Any, NamedTuple

import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional

from models.precision import add_product, multiply_into
from models.shapes import PackedItems, PackedRows

CHUNK_LOGITS = {"cpu": 2**21, "cuda": 2**25}
"""Logits of one chunk, by device. 8 MiB in float32: near enough to the caches of a CPU, large
enough for products. A GPU would be done with that before the next operations are launched."""

MIN_CHUNK_ROWS = 256
"""Positions of a chunk however many items there are: each chunk goes through all the weights."""

ALIGNMENT = 16
"""Logits of one position are a multiple of it: 64 bytes in float32, a line of the caches."""

WIDTH_ALIGNMENT = {"cpu": 1, "cuda": 8}
"""The vectors that are multiplied have a multiple of so many numbers, by device: tensor cores take
rows of a multiple of 16 bytes."""


def cross_entropy(
    outputs: PackedRows,
    weight: Tensor,
    bias: Tensor,
    labels: PackedItems,
    *,
    chunk_rows: int | None = None,
    products: torch.dtype | None = None,
) -> Tensor:
    """Mean over positions of -log softmax(outputs weight^T + bias)[label].

    Equal to `torch.nn.functional.cross_entropy` over those logits, up to rounding. Differentiable
    once. Gradients that nobody asked for cost nothing.

    Args:
        outputs: what the model says at each position; at least one.
        weight: (v, d), one row for each item.
        bias: (v,).
        labels: the right item of each position, 0 <= label < v.
        chunk_rows: positions scored at a time; None: chosen from v.
        products: dtype that matrices are multiplied in; None: the inputs'. Softmax, loss and the
            sums of gradients are of the inputs' dtype always.

    Returns:
        A scalar of the inputs' dtype.

    Raises:
        ValueError: there are no positions.
    """
    if len(outputs) == 0:
        msg = "cross_entropy needs at least one position, got none"
        raise ValueError(msg)
    logits = CHUNK_LOGITS[outputs.device.type]
    rows = chunk_rows or max(MIN_CHUNK_ROWS, logits // len(weight))
    kind = products or outputs.dtype
    if torch.is_grad_enabled():
        loss: Tensor = _ChunkedCrossEntropy.apply(outputs, weight, bias, labels, rows, kind)
        return loss
    return _chunked(outputs, weight, bias, labels, rows, kind, (False, False, False)).loss


class _LossAndGradients(NamedTuple):
    """The mean loss, and the gradients of the sum of all positions' losses."""

    loss: Tensor
    outputs: Tensor | None
    weight: Tensor | None
    bias: Tensor | None


def _chunked(
    outputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    labels: Tensor,
    rows: int,
    kind: torch.dtype,
    needed: tuple[bool, ...],
) -> _LossAndGradients:
    """Make the loss and the needed gradients (of outputs, weight, bias), `rows` at a time.

    The bias is one more row of the transposed weights, which a constant 1 in every output meets:
    adding it to the logits and summing its gradient then cost no passes of their own.
    """
    (count, width), items = outputs.shape, len(weight)
    # Rows of logits that begin at whole cache lines: products are up to twice as fast. The items
    # that fill them up have a share of exactly 0.
    more = -items % ALIGNMENT
    inputs = with_column(outputs, outputs.new_ones(count)).to(kind)  # (t, d + 1 or a few more)
    factors = functional.pad(weight, (0, 0, 0, more))
    biases = functional.pad(bias, (0, more), value=-math.inf)
    # Laid out by items: to turn a table of many items around costs more than a product with it.
    table = with_column(factors, biases).to(kind).t()  # (d + 1 or a few more, v)
    factors = factors.to(kind)
    losses = outputs.new_empty(count)
    logits = outputs.new_empty(min(rows, count), items + more)
    shares = torch.empty_like(logits)
    grad_outputs = torch.empty_like(outputs) if needed[0] else None
    grad_table = outputs.new_zeros(table.shape[::-1]).t() if needed[1] or needed[2] else None
    minus_one = outputs.new_full((1, 1), -1.0)

    for start in range(0, count, rows):
        chunk = slice(start, start + rows)
        x, y = inputs[chunk], labels[chunk, None]
        scores, share = logits[: len(x)], shares[: len(x)]
        torch.softmax(multiply_into(scores, x, table, kind), 1, out=share)
        losses[chunk] = label_losses(scores, share, y)
        if not any(needed):
            continue
        # The gradient of one position's loss in its logits: softmax, less one at the label.
        grad = share.scatter_add_(1, y, minus_one.expand_as(y)).to(kind)
        if grad_outputs is not None:
            multiply_into(grad_outputs[chunk], grad, factors, kind)
        if grad_table is not None:
            add_product(grad_table, x.t(), grad, kind)

    return _LossAndGradients(
        losses.mean(),
        grad_outputs,
        grad_table[:width, :items].t().contiguous()
        if grad_table is not None and needed[1]
        else None,
        grad_table[width, :items] if grad_table is not None and needed[2] else None,
    )


def with_column(vectors: Tensor, column: Tensor) -> Tensor:
    """Return vectors (n, d) with one number more each, and zeros up to the device's alignment."""
    alignment = WIDTH_ALIGNMENT[vectors.device.type]
    more = vectors.new_zeros(len(vectors), -(vectors.shape[1] + 1) % alignment)
    return torch.cat((vectors, column[:, None], more), 1)


def label_losses(logits: Tensor, shares: Tensor, labels: Tensor) -> Tensor:
    """Return -log of each label's share, (t,).

    A share too small for its dtype is taken from the logits, in two passes more. A GPU always does
    that: to look for such a share first would be to wait for it.

    Args:
        logits: (t, v), -inf allowed, but not at a label.
        shares: (t, v), their softmax.
        labels: int64 (t, 1).
    """
    own = shares.gather(1, labels)
    if own.device.type == "cpu" and own.min() >= torch.finfo(own.dtype).tiny:
        return -own.log().squeeze(1)
    distance = logits.amax(1) - logits.gather(1, labels).squeeze(1)
    return distance - shares.amax(1).log()


class _ChunkedCrossEntropy(torch.autograd.Function):
    """The loss whose forward pass already makes the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        weight: Tensor,
        bias: Tensor,
        labels: Tensor,
        rows: int,
        kind: torch.dtype,
    ) -> Tensor:
        made = _chunked(outputs, weight, bias, labels, rows, kind, ctx.needs_input_grad[:3])
        ctx.save_for_backward(made.outputs, made.weight, made.bias)
        ctx.positions = len(outputs)
        return made.loss

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # A graph may be gone through twice (retain_graph): what is saved must stay as it is.
        scale = scale / ctx.positions
        grads = [None if saved is None else saved * scale for saved in ctx.saved_tensors]
        return (*grads, None, None, None)
