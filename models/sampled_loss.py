"""Cross-entropy over a sample of the vocabulary, for catalogues too large to score whole.

Every position is scored against its own label and against a sample that all positions of a step
share. Items are drawn unevenly, so each drawn item's logit is corrected by the log of how often it
was to be expected in the sample (Bengio and Senecal, "Adaptive importance sampling to accelerate
training of a neural probabilistic language model", IEEE TNN 2008; Yi et al.,
"Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019). A sum
over the sample is then in expectation the sum over all items, so that loss and gradients approach
those of `models.loss` as the sample grows, and are equal to them when it is every item once.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.loss import ALIGNMENT, CHUNK_LOGITS, MIN_CHUNK_ROWS, label_losses
from models.packing import Indices
from models.precision import add_product, multiply_into
from models.shapes import PackedItems, PackedRows

POPULAR_SHARE = 0.5
"""Share of the draws that fall on items as often as they occur; the others fall on all alike. The
first finds the items that score high, the second leaves none with a correction without bound."""


class Negatives(NamedTuple):
    """A sample of the vocabulary."""

    items: Tensor
    """int64 (n,), different, rising."""
    log_weights: Tensor
    """float64 (n,), log of the times that an item was drawn over the times expected."""


class NegativeSampler:
    """Draws items: a share of `POPULAR_SHARE` by their occurrences, the others all alike.

    Args:
        occurrences: how often each index of the vocabulary occurs, the pad at 0 included.
        draws: items of a sample, repeats included; at least 1.
    """

    def __init__(self, occurrences: Indices, draws: int) -> None:
        uniform = np.full(len(occurrences), 1 / len(occurrences))
        popular = occurrences / occurrences.sum() if occurrences.any() else uniform
        self.draws = draws
        self.chances = POPULAR_SHARE * popular + (1 - POPULAR_SHARE) * uniform
        """float64 (v,), adding up to 1: how a single draw falls."""
        self._ends = np.cumsum(self.chances)

    def draw(self, generator: np.random.Generator) -> Negatives:
        """Draw one sample, stratified: one draw from each of `draws` equal parts of the chances.

        An item is expected `draws` times its chance, as in independent draws, with less noise; and
        where every item has the same chance and there are as many draws, each comes once.
        """
        places = (np.arange(self.draws) + generator.random(self.draws)) / self.draws
        drawn = np.searchsorted(self._ends, places * self._ends[-1], side="right")
        # Rounding may carry the last place to the very end.
        items, times = np.unique(drawn.clip(max=len(self._ends) - 1), return_counts=True)
        expected = self.draws * self.chances[items]
        return Negatives(torch.from_numpy(items), torch.from_numpy(np.log(times / expected)))


def sampled_cross_entropy(
    outputs: PackedRows,
    weight: Tensor,
    bias: Tensor,
    labels: PackedItems,
    negatives: Negatives,
    *,
    chunk_rows: int | None = None,
    products: torch.dtype | None = None,
) -> Tensor:
    """Mean over positions of the cross-entropy of the label among itself and the sample.

    A position's own label is left out of the sample that it meets. Differentiable once.

    Args:
        outputs: what the model says at each position; at least one.
        weight: (v, d), one row for each item.
        bias: (v,).
        labels: the right item of each position, 0 <= label < v.
        negatives: the sample, at least one item, on the device of `outputs`.
        chunk_rows: positions scored at a time; None: chosen from the size of the sample.
        products: dtype that matrices are multiplied in; None: the inputs', as all else is.

    Returns:
        A scalar of the inputs' dtype.

    Raises:
        ValueError: there are no positions.
    """
    if len(outputs) == 0:
        msg = "sampled_cross_entropy needs at least one position, got none"
        raise ValueError(msg)
    count = len(negatives.items)
    # One look-up, so that the way back makes the one gradient as large as the vocabulary once.
    rows = torch.cat((negatives.items, labels))
    table = F.embedding(rows, weight)
    biases = F.embedding(rows, bias[:, None]).squeeze(1)
    places = torch.searchsorted(negatives.items, labels).clamp(max=count - 1)
    # The column of a label that is in the sample; the one behind the sample stands for none.
    columns = torch.where(negatives.items[places] == labels, places, count)
    loss: Tensor = _SampledCrossEntropy.apply(
        outputs,
        table,
        biases,
        columns,
        negatives.log_weights.to(outputs.dtype),
        chunk_rows or max(MIN_CHUNK_ROWS, CHUNK_LOGITS[outputs.device.type] // count),
        products or outputs.dtype,
    )
    return loss


class _SampledCrossEntropy(torch.autograd.Function):
    """The loss over looked-up rows, whose forward pass already makes the gradients."""

    @staticmethod
    def forward(
        ctx: Any,
        outputs: Tensor,
        table: Tensor,
        biases: Tensor,
        columns: Tensor,
        log_weights: Tensor,
        rows: int,
        kind: torch.dtype,
    ) -> Tensor:
        """Make the loss and the gradients, `rows` positions at a time.

        As in `models.loss`, the bias is a row of the transposed weights.
        """
        positions, drawn = len(outputs), len(log_weights)
        weight, own_weight = table[:drawn], table[drawn:]
        inputs = torch.cat((outputs, outputs.new_ones(positions, 1)), 1).to(kind)  # (t, d + 1)
        drawn_biases = biases[:drawn] + log_weights
        sample = torch.cat((weight.t(), drawn_biases[None])).to(kind)  # (d + 1, n)
        factors = weight.to(kind)
        own_logits = (outputs * own_weight).sum(1) + biases[drawn:]
        losses = torch.empty_like(own_logits)
        width = drawn + 1 + -(drawn + 1) % ALIGNMENT  # what fills it up has a share of exactly 0
        logits = outputs.new_full((min(rows, positions), width), -torch.inf)
        grad_outputs, grad_table = torch.empty_like(outputs), torch.zeros_like(table)
        grad_biases = torch.zeros_like(biases)
        grad_sample = torch.zeros_like(sample, dtype=outputs.dtype)
        label_column = columns.new_full((1, 1), drawn)
        nothing = outputs.new_full((1, 1), -torch.inf)

        for start in range(0, positions, rows):
            chunk = slice(start, start + rows)
            x = inputs[chunk]
            scores = logits[: len(x)]
            multiply_into(scores[:, :drawn], x, sample, kind)
            scores.scatter_(1, columns[chunk, None], nothing.expand(len(x), 1))
            scores[:, drawn] = own_logits[chunk]  # the label's column, also where it stood for none
            shares = torch.softmax(scores, 1)
            losses[chunk] = label_losses(scores, shares, label_column.expand(len(x), 1))
            # The gradient of one position's loss in its logits: softmax, less one at the label.
            grad = shares
            grad[:, drawn] -= 1
            own_grad, drawn_grad = grad[:, drawn : drawn + 1], grad[:, :drawn].to(kind)
            multiply_into(grad_outputs[chunk], drawn_grad, factors, kind)
            grad_outputs[chunk].addcmul_(own_grad, own_weight[chunk])
            add_product(grad_sample, x.t(), drawn_grad, kind)
            torch.mul(own_grad, outputs[chunk], out=grad_table[drawn:][chunk])
            grad_biases[drawn:][chunk] = own_grad[:, 0]

        grad_table[:drawn] = grad_sample[:-1].t()
        grad_biases[:drawn] = grad_sample[-1]
        ctx.save_for_backward(*(g.div_(positions) for g in (grad_outputs, grad_table, grad_biases)))
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # A graph may be gone through twice (retain_graph): what is saved must stay as it is.
        return (*(saved * scale for saved in ctx.saved_tensors), None, None, None, None)
