"""The sampled cross-entropy against the full one, exactly where it is exact and in the mean."""

import numpy as np
import pytest
import torch
from torch import Tensor

from models.training.loss import WIDTH_ALIGNMENT, cross_entropy
from models.training.sampled_loss import Negatives, NegativeSampler, sampled_cross_entropy

RELATIVE = 1e-9
"""Both forms in double precision, sums in different orders."""


@pytest.fixture(params=[1, 8], autouse=True)
def width_alignment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors as they are multiplied on a CPU, and filled up with zeros as on a GPU."""
    monkeypatch.setitem(WIDTH_ALIGNMENT, "cpu", request.param)


def problem(positions: int, items: int) -> tuple[list[Tensor], Tensor]:
    """Draw outputs, weight and bias that want gradients, and labels; the pad is no label."""
    generator = torch.Generator().manual_seed(positions * 1000 + items)
    shapes = [(positions, 8), (items, 8), (items,)]
    inputs = [torch.randn(s, dtype=torch.float64, generator=generator) / 2 for s in shapes]
    labels = torch.randint(1, items, (positions,), generator=generator)
    return [x.requires_grad_() for x in inputs], labels


def loss_and_gradients(loss: Tensor, inputs: list[Tensor]) -> list[Tensor]:
    """Return the loss and its gradients in all inputs."""
    return [loss.detach(), *torch.autograd.grad(loss, inputs)]


def assert_same(actual: list[Tensor], expected: list[Tensor]) -> None:
    """Compare relative to each tensor's largest entry."""
    for one, right in zip(actual, expected, strict=True):
        assert (one - right).abs().max() <= RELATIVE * right.abs().max()


@pytest.mark.parametrize("chunk_rows", [1, 7, 50, 200, None])
def test_a_sample_of_all_items_gives_the_full_loss(chunk_rows: int | None) -> None:
    """With as many draws as items, all alike, each comes once and nothing is left to correct."""
    inputs, labels = problem(positions=100, items=300)
    sampler = NegativeSampler(np.ones(300, np.int64), 300)
    negatives = sampler.draw(np.random.default_rng(0))
    assert negatives.items.tolist() == list(range(300))

    actual = sampled_cross_entropy(*inputs, labels, negatives, chunk_rows=chunk_rows)

    expected = loss_and_gradients(cross_entropy(*inputs, labels), inputs)
    assert_same(loss_and_gradients(actual, inputs), expected)


@pytest.mark.parametrize("chunk_rows", [1, 3, None])
def test_loss_and_gradients_are_those_of_the_plain_form(chunk_rows: int | None) -> None:
    """Plain torch over one row of logits a position, its own label left out of the sample."""
    inputs, labels = problem(positions=20, items=30)
    negatives = Negatives(
        torch.tensor([0, 3, 4, 11, 12, 29]), torch.linspace(-2, 2, 6, dtype=torch.float64)
    )
    assert set(labels.tolist()) & set(negatives.items.tolist()), "a label must be in the sample"
    outputs, weight, bias = inputs
    losses = []
    for output, label in zip(outputs, labels, strict=True):
        others = negatives.items != label
        items = torch.cat((label[None], negatives.items[others]))
        corrections = torch.cat((torch.zeros(1), negatives.log_weights[others]))
        logits = weight[items] @ output + bias[items] + corrections
        losses.append(-torch.log_softmax(logits, 0)[0])
    expected = loss_and_gradients(torch.stack(losses).mean(), inputs)

    actual = sampled_cross_entropy(*inputs, labels, negatives, chunk_rows=chunk_rows)

    assert_same(loss_and_gradients(actual, inputs), expected)


def test_gradients_agree_with_finite_differences() -> None:
    """The hand-made gradients pass torch's check in double precision."""
    inputs, labels = problem(positions=5, items=9)
    negatives = NegativeSampler(np.arange(9), 6).draw(np.random.default_rng(1))

    assert torch.autograd.gradcheck(
        lambda *x: sampled_cross_entropy(*x, labels, negatives, chunk_rows=2), inputs
    )


def test_every_item_is_drawn_as_often_as_expected() -> None:
    """Over many samples the weights of every item average to one: a sum is estimated unbiased."""
    occurrences = np.random.default_rng(2).zipf(1.5, 50).clip(max=10**4)
    occurrences[[0, 7]] = 0
    sampler = NegativeSampler(occurrences, 20)
    generator = np.random.default_rng(3)
    samples, total = 4000, np.zeros(50)

    for _ in range(samples):
        negatives = sampler.draw(generator)
        assert (negatives.items.diff() > 0).all()
        total[negatives.items.numpy()] += negatives.log_weights.exp().numpy()

    expected = 20 * sampler.chances
    # times / expected varies by no more than that of a Bernoulli draw with this mean.
    deviation = np.sqrt(1 / np.minimum(expected, 1) / samples)
    assert (np.abs(total / samples - 1) <= 5 * deviation).all()


class _HighestDraws(np.random.Generator):
    """Draws the largest number below 1, always."""

    def random(self, size: int) -> np.ndarray:
        return np.full(size, np.nextafter(1, 0))


def test_a_draw_at_the_very_end_is_the_last_item() -> None:
    """The highest place of a sample rounds to the end of all chances: nothing is behind it."""
    sampler = NegativeSampler(np.arange(9), 6)

    negatives = sampler.draw(_HighestDraws(np.random.PCG64(0)))

    assert negatives.items[-1] == 8
    assert negatives.log_weights.isfinite().all()


def test_the_mean_gradient_is_that_of_the_full_loss() -> None:
    """Over many samples it comes within 3 %, closer with more draws, not so uncorrected."""
    inputs, labels = problem(positions=40, items=200)
    full = torch.autograd.grad(cross_entropy(*inputs, labels), inputs)
    occurrences = np.random.default_rng(4).zipf(1.3, 200).clip(max=1000)

    def distances(draws: int, *, corrected: bool, samples: int = 600) -> list[float]:
        sampler = NegativeSampler(occurrences, draws)
        generator = np.random.default_rng(5)
        means = [torch.zeros_like(x) for x in inputs]
        for _ in range(samples):
            negatives = sampler.draw(generator)
            if not corrected:
                negatives = negatives._replace(log_weights=torch.zeros(len(negatives.items)))
            loss = sampled_cross_entropy(*inputs, labels, negatives)
            for mean, gradient in zip(means, torch.autograd.grad(loss, inputs), strict=True):
                mean += gradient / samples
        return [float((m - g).norm() / g.norm()) for m, g in zip(means, full, strict=True)]

    few, many = distances(20, corrected=True), distances(160, corrected=True)
    uncorrected = distances(160, corrected=False)

    assert max(many) < 0.03
    assert all(closer < further for closer, further in zip(many, few, strict=True))
    assert all(wrong > 3 * right for wrong, right in zip(uncorrected, many, strict=True))


def test_no_position_is_refused() -> None:
    """The mean of nothing is a mistake of the caller, not a NaN."""
    negatives = NegativeSampler(np.ones(3, np.int64), 2).draw(np.random.default_rng(0))
    with pytest.raises(ValueError, match="at least one position, got none"):
        sampled_cross_entropy(
            torch.ones(0, 2), torch.ones(3, 2), torch.ones(3), torch.ones(0).long(), negatives
        )


def test_the_label_alone_in_the_sample_costs_nothing() -> None:
    """Its accidental hit is left out, so that there is nothing left to lose against."""
    inputs, _ = problem(positions=3, items=4)
    only = Negatives(torch.tensor([2]), torch.zeros(1, dtype=torch.float64))

    loss = sampled_cross_entropy(*inputs, torch.full((3,), 2), only)

    assert loss.item() == 0
    assert all((g == 0).all() for g in torch.autograd.grad(loss, inputs))
