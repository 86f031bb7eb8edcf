"""Dropout's law: how much is dropped, what stays, and where the randomness comes from."""

import math

import pytest
import torch

from models.dropout import dropout


@pytest.mark.parametrize("rate", [0.1, 0.2, 0.6])
def test_elements_are_dropped_at_the_rate_and_the_others_scaled(rate: float) -> None:
    """The share of zeros is the rate within five standard errors, the rest is 1 / (1 - rate)."""
    torch.manual_seed(1)
    count = 200_001

    y = dropout(torch.ones(3, count // 3), rate, training=True)

    zeros = (y == 0).sum().item() / count
    assert abs(zeros - rate) < 5 * math.sqrt(rate * (1 - rate) / count)
    torch.testing.assert_close(
        y[y != 0].unique(), torch.tensor([1 / (1 - rate)]), rtol=1e-4, atol=0
    )


def test_neighbours_and_calls_are_dropped_independently() -> None:
    """Both of two elements go with the square of the rate: side by side, and in two calls."""
    torch.manual_seed(2)
    first, second = (dropout(torch.ones(100_000), 0.5, training=True) == 0 for _ in range(2))

    for other in (second, first.roll(1), first.roll(4)):
        assert abs((first & other).float().mean().item() - 0.25) < 0.007


def test_gradients_pass_where_elements_stay() -> None:
    """The gradient of an element is what it was scaled by."""
    torch.manual_seed(3)
    x = torch.randn(50, 7, dtype=torch.float64, requires_grad=True)

    y = dropout(x, 0.3, training=True)
    y.sum().backward()

    torch.testing.assert_close(x.grad, y.detach() / x.detach())


def test_the_global_random_state_fixes_the_draws() -> None:
    """Restoring torch's random state repeats the same elements."""
    state = torch.get_rng_state()
    first = dropout(torch.ones(100), 0.5, training=True)
    torch.set_rng_state(state)

    assert dropout(torch.ones(100), 0.5, training=True).equal(first)
    assert not dropout(torch.ones(100), 0.5, training=True).equal(first)


@pytest.mark.parametrize(("rate", "training"), [(0.5, False), (0.0, True)])
def test_nothing_is_dropped_outside_training_or_at_rate_zero(rate: float, training: bool) -> None:
    """The input comes back, and no random number is drawn."""
    x, state = torch.ones(5), torch.get_rng_state()

    assert dropout(x, rate, training) is x
    assert torch.get_rng_state().equal(state)


def test_a_rate_next_to_one_drops_nearly_all_and_stays_finite() -> None:
    """The scale is bounded by the number of choices."""
    y = dropout(torch.ones(1000), 1 - 1e-9, training=True)

    assert y.isfinite().all()
