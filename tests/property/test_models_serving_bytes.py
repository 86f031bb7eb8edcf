"""Laws of the first pass over bytes: its bounds hold, and lists are those of floats to the bit."""

import functools
import platform
import tempfile
from collections.abc import Sequence
from fractions import Fraction
from pathlib import Path
from unittest.mock import patch

import numpy as np
import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from numpy.typing import NDArray
from torch import Tensor

from models import native_build
from models.serving import native_top_k as serving_native_top_k
from models.serving.native import NativeServing, load_native_serving
from models.serving.native_top_k import NativeCatalogue

Floats = NDArray[np.float32]

SHAPES = [
    "plain",
    "scales",
    "outlier",
    "biased",
    "zeros",
    "ties",
    "aligned",
    "denormal",
    "underflow",
]
"""What is difficult for bounds: see `_draw`."""


@functools.cache
def _native(*flags: str) -> NativeServing:
    """What is compiled with further flags."""
    with (
        tempfile.TemporaryDirectory(prefix="lrurec-native-") as folder,  # loaded, it may go
        patch.object(native_build, "FLAGS", (*native_build.FLAGS, *flags)),
    ):
        return load_native_serving(Path(folder))


def _draw(
    rng: np.random.Generator, shape: str, users: int, items: int, width: int
) -> tuple[Floats, Floats, Floats]:
    """Outputs, weights and biases whose rounding to bytes is difficult in one way."""
    outputs, weight, bias = (
        rng.standard_normal(size) for size in ((users, width), (items, width), items)
    )
    match shape:
        case "scales":  # items of 2^-40 and of 2^40, in one panel
            weight *= 2.0 ** rng.integers(-40, 41, (items, 1))
            outputs *= 2.0 ** rng.integers(-40, 41, (users, 1))
        case "outlier":  # one number takes all of the bytes' range
            weight[:, rng.integers(width)] *= 1e4
            outputs[:, rng.integers(width)] *= 1e4
        case "biased":  # the products hardly count
            bias *= 1e8
        case "zeros":
            weight[rng.random(items) < 0.5] = 0
            outputs[rng.random(users) < 0.5] = 0
            bias[rng.random(items) < 0.3] = 0
        case "ties":
            weight[:] = weight[rng.integers(0, min(3, items), items)]
            bias[:] = 1
        case "aligned":  # what is left of an item points along the outputs, or against them
            outputs[:] = rng.standard_normal((users, 1))
            against = rng.random((items, 1)) < rng.choice([0.8, 0.995])
            weight = rng.integers(-5, 6, (items, width)) + np.where(against, -0.49, 0.49)
            weight[:, 0] = 127
            bias[:] = 0
        case "underflow":  # rounded without a rest, and each product is lost in part
            outputs = rng.integers(-127, 128, (users, width)) * 2.0**-75
            weight = rng.integers(-127, 128, (items, width)) * 2.0**-79
            outputs[:, 0], weight[:, 0] = 127 * 2.0**-75, 127 * 2.0**-79
            bias[:] = 0
        case "denormal":
            weight *= 1e-40
            bias *= 1e-40
        case _:
            pass
    bias[rng.random(items) < 0.05] = -np.inf
    return outputs.astype(np.float32), weight.astype(np.float32), bias.astype(np.float32)


def _exact(outputs: Floats, weight: Floats, bias: Floats) -> list[list[Fraction | float]]:
    """Every score without any rounding; -inf where the bias is."""
    users, items = (
        [[Fraction(float(x)) for x in row] for row in rows] for rows in (outputs, weight)
    )
    return [
        [
            sum((x * y for x, y in zip(user, item, strict=True)), Fraction(float(b)))
            if np.isfinite(b)
            else -np.inf
            for item, b in zip(items, bias, strict=True)
        ]
        for user in users
    ]


def _every_score(catalogue: NativeCatalogue, outputs: Tensor, items: int) -> Tensor:
    """The float32 scores of items 1 to the last one, -inf where an item cannot be had."""
    found = catalogue.top_k(outputs, items, None, None)
    assert found is not None
    scores, order = found
    return torch.full((len(outputs), items), -torch.inf).scatter(1, order, scores)[:, 1:]


@pytest.mark.parametrize("shape", SHAPES)
@given(seed=st.integers(0, 2**32), width=st.integers(1, 70), items=st.integers(2, 70))
def test_scores_lie_between_their_bounds(shape: str, seed: int, width: int, items: int) -> None:
    """The exact scores and the rounded ones of the float pass, in exact arithmetic."""
    numbers = _draw(np.random.default_rng(seed), shape, 2, items, width)
    outputs, weight, bias = map(torch.from_numpy, numbers)

    found = NativeCatalogue(_native(), weight, bias, "bytes").bounds(outputs)

    assert found is not None
    lower, upper = (bound.double().numpy() for bound in found)
    rounded = _every_score(NativeCatalogue(_native(), weight, bias, "floats"), outputs, items)
    for user, scores in enumerate(_exact(*numbers)):
        for item, exact in enumerate(scores):
            at_least, at_most = lower[user, item], upper[user, item]
            if exact == -np.inf:
                assert at_most == -np.inf
                continue
            assert Fraction(at_least) <= exact <= Fraction(at_most)
            if item:
                assert at_least <= float(rounded[user, item - 1]) <= at_most


@given(seed=st.integers(0, 2**32))
def test_bounds_of_plain_numbers_are_narrow(seed: int) -> None:
    """A quarter of what scores differ by: else far too many items would be scored in floats."""
    outputs, weight, bias = map(
        torch.from_numpy, _draw(np.random.default_rng(seed), "plain", 20, 500, 64)
    )
    bias.clamp_(min=-3)

    found = NativeCatalogue(_native(), weight, bias, "bytes").bounds(outputs)

    assert found is not None
    scores = torch.addmm(bias, outputs, weight.t())
    assert (found[1] - found[0]).mean() < 0.3 * scores.std()


def _require_same_lists(
    outputs: Tensor,
    weight: Tensor,
    bias: Tensor,
    k: int,
    excluded: Tensor | None = None,
    unavailable: Tensor | None = None,
    flags: Sequence[str] = (),
) -> None:
    by_floats, by_bytes = (
        NativeCatalogue(_native(*flags), weight, bias, first_pass).top_k(
            outputs, k, excluded, unavailable
        )
        for first_pass in ("floats", "bytes")
    )
    assert by_floats is not None
    assert by_bytes is not None
    assert all(map(torch.equal, by_floats, by_bytes))


@pytest.mark.parametrize("shape", SHAPES)
@given(
    seed=st.integers(0, 2**32),
    users=st.integers(1, 14),
    items=st.one_of(st.integers(1, 130), st.integers(300, 700), st.integers(2000, 5000)),
    width=st.sampled_from([1, 3, 16, 64, 65]),
    k=st.one_of(st.integers(1, 12), st.integers(30, 200), st.just(6000)),
    n_excluded=st.integers(0, 40),
)
def test_lists_are_those_of_floats_to_the_bit(
    shape: str, seed: int, users: int, items: int, width: int, k: int, n_excluded: int
) -> None:
    """The same items in the same order with the same bits of scores, however useless the bounds."""
    rng = np.random.default_rng(seed)
    outputs, weight, bias = map(torch.from_numpy, _draw(rng, shape, users, items, width))
    excluded = torch.from_numpy(rng.integers(0, items, (users, n_excluded)))
    unavailable = torch.from_numpy(rng.random(items) < 0.2)

    _require_same_lists(outputs, weight, bias, k, excluded, unavailable)


@given(st.integers(0, 2**32))
def test_items_whose_score_is_their_bound_are_not_missed(seed: int) -> None:
    """A few items score as high as bounds allow, most as low: the few are found among them."""
    numbers = _draw(np.random.default_rng(seed), "aligned", 8, 4000, 64)
    outputs, weight, bias = map(torch.from_numpy, numbers)

    _require_same_lists(outputs, weight, bias, 10)


@pytest.mark.skipif(platform.machine() != "x86_64", reason="flags for x86_64")
@pytest.mark.parametrize(
    "flags", [("-mno-avx512f",), ("-mno-avx512f", "-mno-avxvnni"), ("-mno-avx2",)]
)
@pytest.mark.parametrize("shape", ["plain", "ties", "aligned"])
@given(seed=st.integers(0, 2**32), full=st.booleans())
@settings(max_examples=10)
def test_lists_are_right_on_processors_with_fewer_instructions(
    flags: tuple[str, ...], shape: str, seed: int, *, full: bool
) -> None:
    """Each form of the sums of bytes; `full`: as large as they can be, of either sign."""
    rng = np.random.default_rng(seed)
    outputs, weight, bias = map(torch.from_numpy, _draw(rng, shape, 7, 400, 64))
    if full:
        outputs, weight = outputs.sign(), weight.sign() * (1 + torch.arange(400)[:, None] % 3)

    _require_same_lists(outputs, weight, bias, 10, flags=flags)


@given(st.integers(0, 2**32), st.integers(1, 9))
def test_users_too_large_for_bounds_get_the_lists_of_floats(seed: int, users: int) -> None:
    """Some users' scores could overflow: they, and the others, get what floats give."""
    rng = np.random.default_rng(seed)
    numbers = _draw(rng, "plain", users, 3000, 8)
    outputs, weight, bias = map(torch.from_numpy, numbers)
    outputs[torch.from_numpy(rng.random(users) < 0.5)] *= 1e37

    _require_same_lists(outputs, weight, bias, 10)


@pytest.mark.parametrize(
    ("weight", "bias"), [(1e37, 0), (float("nan"), 0), (0, 1e37), (0, float("nan")), (0, np.inf)]
)
def test_weights_without_bounds_are_read_as_floats(weight: float, bias: float) -> None:
    """What may overflow or is no number at all: asked for bytes, it goes by floats."""
    weights, biases = torch.randn(40, 8), torch.randn(40)
    weights[7, 3] += weight
    biases[9] += bias

    catalogue = NativeCatalogue(_native(), weights, biases, "bytes")

    assert catalogue.first_pass == "floats"
    assert catalogue.bounds(torch.randn(2, 8)) is None
    assert torch.equal(catalogue.weight()[8:], weights[8:])


def test_long_lists_are_found_by_floats(monkeypatch: pytest.MonkeyPatch) -> None:
    """Where bytes are not faster: short lists go by bytes and long ones by floats, all the same."""
    monkeypatch.setattr(serving_native_top_k, "MIN_BYTES_ITEMS_OF_K", 200)
    monkeypatch.setattr(_native(), "bytes_fast_from", 1000)
    weight, bias, outputs = torch.randn(2000, 8), torch.randn(2000), torch.randn(3, 8)
    catalogue, floats = (
        NativeCatalogue(_native(), weight, bias, first_pass) for first_pass in (None, "floats")
    )

    for k in (10, 11):
        found, expected = (by.top_k(outputs, k, None, None) for by in (catalogue, floats))
        assert found is not None
        assert expected is not None
        assert all(map(torch.equal, found, expected))
    assert catalogue.first_pass == "bytes"
    assert torch.equal(catalogue.weight(), weight)
    assert NativeCatalogue(_native(), weight[:999], bias[:999]).first_pass == "floats"
    monkeypatch.setattr(_native(), "bytes_fast_from", 0)  # bytes help this processor nowhere
    assert NativeCatalogue(_native(), weight, bias).first_pass == "floats"
