"""The chunked cross-entropy against torch's own over whole logits."""

import pytest
import torch
from torch import Tensor
from torch.nn import functional as F

from models.training.loss import WIDTH_ALIGNMENT, cross_entropy

LOSS_RELATIVE = 1e-6
"""Both forms sum in float32; over some hundred terms that leaves a few units in the last place."""
GRADIENT_RELATIVE = 2e-6
"""Same, after one matrix product more; relative to the largest entry of the gradient."""


@pytest.fixture(params=[1, 8], autouse=True)
def width_alignment(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """Vectors as they are multiplied on a CPU, and filled up with zeros as on a GPU."""
    monkeypatch.setitem(WIDTH_ALIGNMENT, "cpu", request.param)


def problem(
    positions: int, items: int, dtype: torch.dtype = torch.float32
) -> tuple[list[Tensor], Tensor]:
    """Draw outputs, weight and bias that want gradients, and labels."""
    generator = torch.Generator().manual_seed(positions * 1000 + items)
    shapes = [(positions, 8), (items, 8), (items,)]
    inputs = [torch.randn(shape, dtype=dtype, generator=generator) for shape in shapes]
    labels = torch.randint(items, (positions,), generator=generator)
    return [x.requires_grad_() for x in inputs], labels


def plain(inputs: list[Tensor], labels: Tensor) -> Tensor:
    """Compute the same loss with all logits at once."""
    return F.cross_entropy(F.linear(*inputs), labels)


@pytest.mark.parametrize("chunk_rows", [1, 7, 50, 200, None])
def test_loss_and_gradients_are_those_of_the_plain_form(chunk_rows: int | None) -> None:
    """However the positions are cut into chunks, also unevenly, nothing changes beyond rounding."""
    inputs, labels = problem(positions=100, items=300)
    expected = plain(inputs, labels)
    expected_gradients = torch.autograd.grad(expected, inputs)

    loss = cross_entropy(*inputs, labels, chunk_rows=chunk_rows)
    gradients = torch.autograd.grad(loss, inputs)

    torch.testing.assert_close(loss, expected, rtol=LOSS_RELATIVE, atol=0)
    for gradient, right in zip(gradients, expected_gradients, strict=True):
        assert (gradient - right).abs().max() <= GRADIENT_RELATIVE * right.abs().max()


def test_gradients_agree_with_finite_differences() -> None:
    """The hand-made gradients pass torch's check in double precision."""
    inputs, labels = problem(positions=5, items=6, dtype=torch.float64)

    assert torch.autograd.gradcheck(lambda *x: cross_entropy(*x, labels, chunk_rows=2), inputs)


def test_only_the_wanted_gradients_are_made() -> None:
    """A frozen input stays without a gradient and leaves the others as they were."""
    inputs, labels = problem(positions=20, items=30)
    expected = torch.autograd.grad(plain(inputs, labels), inputs[1])[0]
    outputs, weight, bias = inputs[0].detach(), inputs[1], inputs[2].detach()

    cross_entropy(outputs, weight, bias, labels).backward()

    torch.testing.assert_close(weight.grad, expected)
    assert outputs.grad is None
    assert bias.grad is None


def test_without_grad_mode_the_loss_is_the_same() -> None:
    """Measuring a loss under no_grad gives its value and no graph."""
    inputs, labels = problem(positions=20, items=30)

    with torch.no_grad():
        loss = cross_entropy(*inputs, labels)

    assert not loss.requires_grad
    torch.testing.assert_close(loss, plain(inputs, labels).detach(), rtol=LOSS_RELATIVE, atol=0)


def test_a_scaled_loss_scales_the_gradients_each_time_it_is_asked() -> None:
    """Going back twice through a retained graph gives the same gradient twice."""
    inputs, labels = problem(positions=20, items=30)
    expected = torch.autograd.grad(3 * plain(inputs, labels), inputs)
    loss = 3 * cross_entropy(*inputs, labels)

    first = torch.autograd.grad(loss, inputs, retain_graph=True)
    second = torch.autograd.grad(loss, inputs)

    torch.testing.assert_close(first, second, rtol=0, atol=0)
    torch.testing.assert_close(first, expected)


def test_huge_logits_give_a_finite_loss() -> None:
    """A sure and wrong model costs its distance in logits, not infinity."""
    outputs, weight, bias = torch.ones(1, 1), torch.tensor([[500.0], [-500.0]]), torch.zeros(2)

    assert cross_entropy(outputs, weight, bias, torch.tensor([1])).item() == 1000


@pytest.mark.parametrize("distance", [80.0, 88.0, 95.0, 110.0, 1000.0])
def test_shares_below_the_least_number_are_taken_from_the_logits(distance: float) -> None:
    """A label's share of e^-95 is no number of float32 any more; loss and gradients are as ever."""
    bias = torch.zeros(40)
    bias[7] = -distance
    inputs = [torch.zeros(3, 8), torch.ones(40, 8), bias]
    inputs = [x.requires_grad_() for x in inputs]
    labels = torch.tensor([3, 7, 5])
    expected = torch.autograd.grad(plain(inputs, labels), inputs)

    loss = cross_entropy(*inputs, labels)

    torch.testing.assert_close(loss, plain(inputs, labels), rtol=LOSS_RELATIVE, atol=0)
    torch.testing.assert_close(torch.autograd.grad(loss, inputs), expected)


def test_no_position_is_refused() -> None:
    """The mean of nothing is a mistake of the caller, not a NaN."""
    with pytest.raises(ValueError, match="at least one position, got none"):
        cross_entropy(torch.ones(0, 2), torch.ones(3, 2), torch.ones(3), torch.ones(0).long())
