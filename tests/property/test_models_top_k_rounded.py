"""Laws of the first pass in bfloat16, on each device: its bounds hold, and its lists are exact.

On CUDA sums are taken in another order; bounds grant any.
"""

import math
from collections.abc import Callable

import numpy as np
import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st

from models.config import ModelConfig
from models.recommender import Recommender
from models.serving import model as serving
from models.serving import top_k as plain
from models.serving import top_k_rounded as module
from models.serving.model import ServingModel
from models.serving.top_k_rounded import RoundedItems
from tests.devices import on_each_device

KINDS = ("plain", "scales", "outliers", "alike", "aligned", "exact", "tiny", "zeros")


def _vectors(rng: np.random.Generator, kind: str, count: int, width: int) -> np.ndarray:
    """Vectors of one kind, float32 (count, width); each is hard on bounds in another way."""
    vectors = rng.standard_normal((count, width))
    if kind == "scales":
        vectors *= 10.0 ** rng.uniform(-10, 10, (count, 1))
    elif kind == "outliers":
        vectors[np.arange(count), rng.integers(width, size=count)] *= 1e4
    elif kind == "alike":  # every item may be the best
        vectors = vectors[:1] + 1e-5 * vectors
    elif kind == "aligned":  # all that rounding leaves points the same way, as far as it can
        vectors = (
            np.full((count, width), 1 + 2**-8 - 2**-20) * 2.0 ** rng.integers(-9, 9, count)[:, None]
        )
    elif kind == "exact":  # rounding leaves nothing, and so no room either
        vectors = (np.float32(vectors).view(np.uint32) & 0xFFFF0000).view(np.float32)
    elif kind == "tiny":
        vectors *= 10.0 ** rng.uniform(-45, -30, (count, 1))
    elif kind == "zeros":
        vectors *= rng.random((count, 1)) < 0.3
    return vectors.astype(np.float32)


def _exact(weight: np.ndarray, bias: np.ndarray, output: np.ndarray) -> np.ndarray:
    """Every score of one user: in double precision the products are exact, and rounded once."""
    products = weight.astype(float) * output.astype(float)
    return np.array([math.fsum([b, *row]) for b, row in zip(bias, products, strict=True)])


def _bias(rng: np.random.Generator, size: float, count: int) -> np.ndarray:
    bias = size * rng.standard_normal(count)
    bias[rng.random(count) < 0.1] = -np.inf
    return bias.astype(np.float32)


def _rounded(weight: np.ndarray, bias: np.ndarray, device: torch.device) -> RoundedItems:
    torch.backends.cuda.matmul.allow_bf16_reduced_precision_reduction = False  # as `for_device`
    rounded = RoundedItems.of(
        torch.tensor(weight, dtype=torch.float32, device=device),
        torch.tensor(bias, dtype=torch.float32, device=device),
    )
    assert rounded is not None
    return rounded


def cases(test: Callable[..., None]) -> Callable[..., None]:
    """Kinds of items and of users in all combinations."""
    drawn = given(
        seed=st.integers(0, 2**32),
        table=st.sampled_from(KINDS),
        user=st.sampled_from(KINDS),
        bias_size=st.sampled_from([0, 1e-41, 1, 1e8]),
        n_items=st.integers(1, 400),
        width=st.one_of(st.integers(1, 9), st.sampled_from([64, 200])),
    )
    tight = example(seed=0, table="exact", user="exact", bias_size=1, n_items=400, width=64)
    return tight(drawn(test))


@on_each_device
@cases
@pytest.mark.parametrize("cancels", [False, True])
def test_no_score_is_above_its_bound(
    device: torch.device,
    cancels: bool,
    seed: int,
    table: str,
    user: str,
    bias_size: float,
    n_items: int,
    width: int,
) -> None:
    """Neither the exact score nor what float32 may make of it, far from zero or near.

    Near zero, where a bias cancels what is large, no allowance in proportion to the score helps.
    """
    rng = np.random.default_rng(seed)
    weight, outputs = _vectors(rng, table, n_items + 1, width), _vectors(rng, user, 2, width)
    bias = _bias(rng, bias_size, n_items + 1)
    if cancels:
        bias = np.clip(-weight.astype(float) @ outputs[0], -1e14, 1e14).astype(np.float32)
    items = _rounded(weight, bias, device)

    bounds, found = (
        tensor.cpu()
        for tensor in items.highest_bounds(
            torch.tensor(outputs, device=device), n_items, None, None
        )
    )

    for of_user in range(2):
        exact = _exact(weight, bias, outputs[of_user])
        sizes = np.abs(weight.astype(float)) @ np.abs(outputs[of_user].astype(float))
        exact += (width + 2) * 2**-24 * (np.abs(np.where(np.isfinite(bias), bias, 0)) + sizes)
        place = found[of_user][bounds[of_user] > -math.inf].numpy()
        assert sorted(place) == [item for item in range(1, n_items + 1) if np.isfinite(bias[item])]
        assert (exact[place] <= bounds[of_user, : len(place)].numpy()).all()


@on_each_device
@cases
@pytest.mark.parametrize("block_items", [50, 10_000])
def test_lists_are_exact_whatever_the_numbers_are(
    device: torch.device,
    block_items: int,
    seed: int,
    table: str,
    user: str,
    bias_size: float,
    n_items: int,
    width: int,
) -> None:
    """No item that is left out is better than one listed, but for the rounding of float32."""
    rng = np.random.default_rng(seed)
    n_items, k = n_items + 300, int(rng.integers(1, 4))
    weight, outputs = _vectors(rng, table, n_items + 1, width), _vectors(rng, user, 3, width)
    bias = _bias(rng, bias_size, n_items + 1)
    excluded = rng.integers(0, n_items + 1, (3, 40))
    unavailable = rng.random(n_items + 1) < 0.2
    rounded = _rounded(weight, bias, device)

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(plain, "BLOCK_ITEMS", block_items)
        scores, items = (
            tensor.cpu()
            for tensor in rounded.top_k(
                torch.tensor(outputs, device=device),
                k,
                torch.tensor(excluded, device=device),
                torch.tensor(unavailable, device=device),
            )
        )

    assert scores.shape == items.shape == (3, k)
    for of_user in range(3):
        exact = _exact(weight, bias, outputs[of_user])
        sizes = np.abs(weight.astype(float)) @ np.abs(outputs[of_user].astype(float))
        error = (width + 2) * 2**-24 * (np.abs(bias) + sizes) + 2**-100
        barred = unavailable.copy()
        barred[[0, *excluded[of_user]]] = True
        listed = items[of_user].numpy()
        assert len({*listed}) == k
        assert not barred[listed].any()
        assert (np.abs(scores[of_user].numpy() - exact[listed]) <= error[listed]).all()
        barred[listed] = True
        barred |= ~np.isfinite(bias)
        others = ~barred
        assert (exact[others] - error[others] <= scores[of_user, -1].item()).all()


@on_each_device
@given(
    seed=st.integers(0, 2**32),
    n_unavailable=st.integers(0, 60),
    k=st.integers(1, 12),
    n_items=st.integers(500, 900),
)
def test_lists_of_whole_numbers_are_those_of_a_sort(
    device: torch.device, seed: int, n_unavailable: int, k: int, n_items: int
) -> None:
    """Where scores are exact, the list has just the k highest; where none is left, item 0."""
    rng = np.random.default_rng(seed)
    outputs, weight = rng.integers(-300, 300, (4, 3)), rng.integers(-300, 300, (n_items + 1, 3))
    unavailable = rng.permutation(n_items + 1) >= n_unavailable  # often fewer than k are left
    rounded = _rounded(weight, np.zeros(n_items + 1), device)

    scores, items = rounded.top_k(
        torch.tensor(outputs, dtype=torch.float32, device=device),
        k,
        None,
        torch.tensor(unavailable, device=device),
    )

    every_score = (outputs @ weight.T).astype(float)
    every_score[:, unavailable] = -math.inf
    every_score[:, 0] = -math.inf
    assert scores.tolist() == (-np.sort(-every_score, 1)[:, :k]).tolist()
    for user in range(4):
        is_item = scores[user] > -math.inf
        found = items[user, is_item].tolist()
        assert every_score[user, found].tolist() == scores[user, is_item].tolist()
        assert len({*found}) == len(found)
        assert items[user, ~is_item].tolist() == [0] * (k - len(found))


@on_each_device
def test_the_first_pass_finds_the_lists_of_plain_numbers(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Bounds are close enough that no user of a hundred has to be found by every score."""
    rng = np.random.default_rng(0)
    weight, outputs = (_vectors(rng, "plain", n, 64) for n in (20_000, 100))
    rounded = _rounded(weight, rng.standard_normal(20_000), device)
    outputs = torch.tensor(outputs, device=device)
    expected = plain.top_k(outputs, rounded.weight, rounded.bias, 10, None, None)[1]
    monkeypatch.setattr(module, "top_k", None)  # calling it fails

    _, items = rounded.top_k(outputs, 10, None, None)

    assert torch.equal(items, expected)


@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e20])
def test_a_user_without_bounds_is_found_by_every_score(number: float) -> None:
    """Outputs that are too large, or no numbers, change nothing for the others either."""
    torch.manual_seed(0)
    weight, bias, outputs = torch.randn(900, 8), torch.randn(900), torch.randn(3, 8)
    outputs[1, 2] = number
    rounded = RoundedItems.of(weight, bias)
    assert rounded is not None

    scores, items = rounded.top_k(outputs, 5, None, None)

    expected = plain.top_k(outputs, weight, bias, 5, None, None)
    assert torch.equal(items[::2], expected[1][::2])
    alone = plain.top_k(outputs[1:2], weight, bias, 5, None, None)
    assert torch.equal(items[1:2], alone[1])
    assert torch.equal(scores[1:2].nan_to_num(7), alone[0].nan_to_num(7))


def test_a_user_whose_products_bfloat16_does_not_hold_is_found_by_every_score() -> None:
    """Rounding up may lead beyond float32, where exact scores are just within."""
    weight, outputs = torch.full((900, 1), -(2 - 2**-9) * 2**48), torch.full((1, 1), 2.0**79)
    rounded = RoundedItems.of(weight, torch.zeros(900))
    assert rounded is not None

    scores, items = rounded.top_k(outputs, 3, None, None)

    assert scores.tolist() == [3 * [-(2 - 2**-9) * 2**127]]
    assert 0 not in items


@pytest.mark.parametrize("number", [torch.nan, torch.inf, 1e20])
@pytest.mark.parametrize("wrong", ["weight", "bias"])
def test_items_without_bounds_are_not_rounded(wrong: str, number: float) -> None:
    """A weight or a bias that is too large, or no number, leaves nothing to bound scores by."""
    weight, bias = torch.randn(90, 8), torch.randn(90)
    assert RoundedItems.of(weight, bias) is not None
    (weight[7] if wrong == "weight" else bias)[3] = number

    assert RoundedItems.of(weight, bias) is None


def test_one_item_far_above_proves_nothing_of_the_others() -> None:
    """Items that bfloat16 cannot tell apart are found by every score, all but the first of them."""
    weight = 1 + torch.randperm(900, generator=torch.Generator().manual_seed(0))[:, None] / 2**20
    weight[1] = 100
    rounded = RoundedItems.of(weight, torch.zeros(900))
    assert rounded is not None

    scores, _ = rounded.top_k(torch.ones(1, 1), 3, None, None)

    assert torch.equal(scores[0], weight[1:, 0].topk(3).values)


def test_arguments_are_checked_as_by_the_plain_form() -> None:
    """No k below 1, no excluded item that the vocabulary has not."""
    rounded = RoundedItems.of(torch.zeros(900, 8), torch.zeros(900))
    assert rounded is not None

    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        rounded.top_k(torch.zeros(1, 8), 0, None, None)
    with pytest.raises(ValueError, match=r"excluded items must be in 0\.\.899, got 900\.\.900"):
        rounded.top_k(torch.zeros(1, 8), 1, torch.tensor([[900]]), None)


def test_the_cpu_and_small_catalogues_keep_float32() -> None:
    """It is for tensor cores and for many items."""
    v = module.MIN_ROUNDED_ITEMS
    assert RoundedItems.for_device(torch.zeros(v, 2), torch.zeros(v)) is None
    assert RoundedItems.for_device(torch.zeros(9, 2), torch.zeros(9)) is None


def test_a_served_model_with_rounded_items_gives_the_same_lists(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """Wherever a device rounds a model's items, its lists are those of every score."""
    config = ModelConfig(n_items=900, hidden_size=8, state_size=12)
    recommender = Recommender(config, torch.Generator().manual_seed(0)).eval()
    expected = ServingModel(recommender)
    monkeypatch.setattr(RoundedItems, "for_device", RoundedItems.of)
    served = ServingModel(recommender)
    outputs, excluded = torch.randn(20, 8), torch.randint(0, 901, (20, 30))
    unavailable = torch.rand(901) < 0.3
    monkeypatch.setattr(serving, "top_k", None)  # calling it fails

    scores, items = served.top_k(outputs, 5, excluded, unavailable)

    expected_scores = expected.scores(outputs).gather(1, items)
    assert torch.allclose(scores, expected_scores, atol=1e-6)
    monkeypatch.undo()
    assert torch.equal(items, expected.top_k(outputs, 5, excluded, unavailable)[1])
