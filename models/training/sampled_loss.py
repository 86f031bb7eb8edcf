"""Cross-entropy over a sample of the vocabulary, for catalogues too large to score whole.

Every position is scored against its own label and against a sample that all positions of a step
share. Items are drawn unevenly, so each drawn item's logit is corrected by the log of how often it
was to be expected in the sample (Bengio and Senecal, "Adaptive importance sampling to accelerate
training of a neural probabilistic language model", IEEE TNN 2008; Yi et al.,
"Sampling-bias-corrected neural modeling for large corpus item recommendations", RecSys 2019). A sum
over the sample is then in expectation the sum over all items, so that loss and gradients approach
those of `loss` as the sample grows, and are equal to them when it is every item once.
"""

from typing import Any, NamedTuple

import numpy as np
import torch
from torch import Tensor
from torch.autograd.function import once_differentiable
from torch.nn import functional as F

from models.packing import Indices
from models.precision import add_product, multiply_into
from models.shapes import PackedItems, PackedRows
from models.training.loss import ALIGNMENT, CHUNK_LOGITS, MIN_CHUNK_ROWS, label_losses, with_column

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
    # The column of a label that is in the sample; the label's own stands for none.
    columns = torch.where(negatives.items[places] == labels, places, _label_column(count))
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


def _label_column(drawn: int) -> int:
    return drawn + -drawn % ALIGNMENT


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

        As in `loss`, the bias is a row of the transposed weights, and items that fill the sample
        up have a share of exactly 0. The label's column is behind them.
        """
        (positions, width), drawn = outputs.shape, len(log_weights)
        own = _label_column(drawn)
        own_weight = table[drawn:]
        inputs = with_column(outputs, outputs.new_ones(positions)).to(kind)
        factors = F.pad(table[:drawn], (0, 0, 0, own - drawn))
        drawn_biases = F.pad(biases[:drawn] + log_weights, (0, own - drawn), value=-torch.inf)
        sample = with_column(factors, drawn_biases).to(kind).t()
        factors = factors.to(kind)
        own_logits = (outputs * own_weight).sum(1) + biases[drawn:]
        losses = torch.empty_like(own_logits)
        logits = outputs.new_full((min(rows, positions), own + ALIGNMENT), -torch.inf)
        grad_outputs, grad_table = torch.empty_like(outputs), torch.zeros_like(table)
        grad_biases = torch.zeros_like(biases)
        grad_sample = outputs.new_zeros(sample.shape[::-1]).t()
        label_column = columns.new_full((1, 1), own)
        nothing = outputs.new_full((1, 1), -torch.inf)

        for start in range(0, positions, rows):
            chunk = slice(start, start + rows)
            x = inputs[chunk]
            scores = logits[: len(x)]
            multiply_into(scores[:, :own], x, sample, kind)
            scores.scatter_(1, columns[chunk, None], nothing.expand(len(x), 1))
            scores[:, own] = own_logits[chunk]  # also where its column stood for none
            shares = torch.softmax(scores, 1)
            losses[chunk] = label_losses(scores, shares, label_column.expand(len(x), 1))
            # The gradient of one position's loss in its logits: softmax, less one at the label.
            grad = shares
            grad[:, own] -= 1
            own_grad, drawn_grad = grad[:, own : own + 1], grad[:, :own].to(kind)
            multiply_into(grad_outputs[chunk], drawn_grad, factors, kind)
            grad_outputs[chunk].addcmul_(own_grad, own_weight[chunk])
            add_product(grad_sample, x.t(), drawn_grad, kind)
            torch.mul(own_grad, outputs[chunk], out=grad_table[drawn:][chunk])
            grad_biases[drawn:][chunk] = own_grad[:, 0]

        grad_table[:drawn] = grad_sample[:width, :drawn].t()
        grad_biases[:drawn] = grad_sample[width, :drawn]
        ctx.save_for_backward(*(g.div_(positions) for g in (grad_outputs, grad_table, grad_biases)))
        return losses.mean()

    @staticmethod
    @once_differentiable
    def backward(ctx: Any, scale: Tensor) -> tuple[Tensor | None, ...]:
        # A graph may be gone through twice (retain_graph): what is saved must stay as it is.
        return (*(saved * scale for saved in ctx.saved_tensors), None, None, None, None)
