"""No number of a model in use exceeds its bound, whatever the weights, items and history."""

import functools
import math
import tempfile
from pathlib import Path
from typing import Any

import pytest
import torch
from hypothesis import assume, example, given
from hypothesis import strategies as st
from torch.nn import functional as F
from torch.overrides import TorchFunctionMode

from models.config import ModelConfig
from models.magnitudes import LARGEST, largest_number
from models.recommender import Recommender
from models.serving.model import ServingModel
from models.serving.native import NativeServing, load_native_serving

N_ITEMS = 7
ROUNDING = 1e-3
"""Relative; sums of float32 of some dozen terms are within 1e-5, and chains of layers short."""
FIRST, LAST = "blocks.0.lru", "blocks.1.feed_forward"
NAMES = sorted(Recommender(ModelConfig(n_items=1, hidden_size=1, state_size=1)).state_dict())


@functools.cache
def native() -> NativeServing:
    with tempfile.TemporaryDirectory(prefix="lrurec-native-") as folder:  # loaded, it may go
        return load_native_serving(Path(folder))


def model_of(seed: int, sizes: tuple[int, int, int], scales: dict[str, float]) -> Recommender:
    """A model of random weights, some of them scaled by powers of ten."""
    hidden, state, blocks = sizes
    generator = torch.Generator().manual_seed(seed)
    config = ModelConfig(n_items=N_ITEMS, hidden_size=hidden, state_size=state, n_blocks=blocks)
    recommender = Recommender(config, generator).eval()
    with torch.no_grad():
        for name, parameter in recommender.named_parameters():
            if not name.endswith("_log"):
                parameter.add_(torch.randn(parameter.shape, generator=generator) * 0.1)
            parameter.mul_(10.0 ** scales.get(name, 0.0))
    return recommender


def numbers_in_use(model: ServingModel, seed: int, events: int) -> torch.Tensor:
    """The magnitudes of states, outputs and scores over a history."""
    generator = torch.Generator().manual_seed(seed)
    items = torch.randint(0, N_ITEMS + 1, (events,), generator=generator)
    state, outputs = model.advance(model.init_state(1), items, torch.tensor([events]))
    read = model.readout(state, items[-1:])
    scores = model.scores(torch.cat([outputs, read, model.cold_start()[None]]))
    return torch.cat([x.abs().flatten() for x in (state, outputs, read, scores)])


@pytest.mark.parametrize("form", ["torch", "native"])
@given(
    seed=st.integers(0, 2**31),
    sizes=st.sampled_from([(1, 1, 1), (4, 3, 2), (8, 16, 3)]),
    scales=st.dictionaries(st.sampled_from(NAMES), st.integers(-3, 3), max_size=4),
    events=st.integers(1, 300),
)
def test_no_number_exceeds_the_bound(
    form: str, seed: int, sizes: tuple[int, int, int], scales: dict[str, float], events: int
) -> None:
    """States, outputs and scores, by either form of serving, after histories of any length."""
    recommender = model_of(seed, sizes, scales)
    bound = largest_number(recommender)
    assume(not math.isnan(bound))  # an angle beyond float32, which is over the limit
    model = ServingModel(recommender, native=native() if form == "native" else None)

    found = numbers_in_use(model, seed, events)

    assert found.isfinite().all()
    assert float(found.max()) <= bound * (1 + ROUNDING)


class NumbersOnTheWay(TorchFunctionMode):
    """Notes the largest number that goes into a layer norm, or comes out of anything linear."""

    largest = 0.0

    def __torch_function__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        result = func(*args, **(kwargs or {}))
        noted = {F.layer_norm: args[:1], F.linear: (result,), F.embedding: (result,)}
        for tensor in noted.get(func, ()):
            self.largest = max(self.largest, float(tensor.abs().max()))
        return result


@pytest.mark.parametrize(
    "scales",
    [
        {"item_embedding": 3, f"{LAST}.norm.weight": -3, f"{LAST}.norm.bias": -3},
        {f"{FIRST}.in_weight": 3, f"{FIRST}.out_weight": -4},
        {f"{FIRST}.out_weight": 3},
        {"embedding_norm.weight": 3, f"{FIRST}.in_weight": -3, f"{FIRST}.out_weight": -3},
        {f"{LAST}.weight_1": 3, f"{LAST}.weight_2": -3},
        {f"{LAST}.weight_2": 3},
        {"blocks.1.lru.norm.weight": 3, f"{LAST}.weight_1": -3},
        {f"{LAST}.norm.weight": 3, "item_embedding": -3},
        {"item_embedding": 3},
        {"item_bias": 3},
    ],
    ids=["embedding", "states", "y", "x in y", "inner", "z", "x in z", "output", "score", "bias"],
)
@pytest.mark.parametrize("seed", range(3))
def test_no_number_on_the_way_exceeds_the_bound(scales: dict[str, float], seed: int) -> None:
    """Whichever is the largest: no other one stands in for it."""
    recommender = model_of(seed, (4, 3, 2), scales)
    items = torch.randint(0, N_ITEMS + 1, (300,), generator=torch.Generator().manual_seed(seed))

    with torch.inference_mode(), NumbersOnTheWay() as seen:
        outputs = recommender(items, torch.tensor([300]))
        recommender.scores(outputs)

    states = numbers_in_use(ServingModel(recommender), seed, 300)
    largest = max(seen.largest, float(outputs.abs().max()), float(states.max()))
    assert largest <= largest_number(recommender) * (1 + ROUNDING)


@given(
    seed=st.integers(0, 2**31),
    scales=st.dictionaries(st.sampled_from(NAMES), st.integers(-38, 38), max_size=4),
    events=st.integers(1, 40),
)
@example(seed=0, scales={"blocks.0.lru.theta_log": 2}, events=1)
def test_a_model_that_may_serve_gives_numbers(
    seed: int, scales: dict[str, float], events: int
) -> None:
    """However large its weights: one by which a score is none is over the limit."""
    recommender = model_of(seed, (4, 3, 2), scales)

    if largest_number(recommender) <= LARGEST:
        assert numbers_in_use(ServingModel(recommender), seed, events).isfinite().all()


@pytest.mark.parametrize("value", [math.nan, math.inf, -math.inf])
@pytest.mark.parametrize("name", NAMES)
def test_one_weight_that_is_no_number_is_seen(name: str, value: float) -> None:
    """Wherever it is; infinities that stand for a zero, as logarithms, may do."""
    recommender = model_of(1, (4, 3, 2), {})
    with torch.no_grad():
        recommender.get_parameter(name).view(-1)[-1] = value

    largest = largest_number(recommender)

    is_zero = value == -math.inf and name.endswith("_log")
    is_forgotten = value == math.inf and name.endswith("nu_log")
    assert (largest <= LARGEST) == (is_zero or is_forgotten)


def test_a_channel_that_forgets_nothing_is_within_the_limit() -> None:
    """Where |lambda| is rounded to 1, a state grows until float32 adds nothing any more."""
    recommender = model_of(1, (8, 16, 3), {})
    with torch.no_grad():
        for name, parameter in recommender.named_parameters():
            if name.endswith("nu_log"):
                parameter.fill_(-50.0)

    assert 1e6 < largest_number(recommender) < LARGEST


def test_models_that_begin_to_train_are_far_below_the_limit() -> None:
    """No honest model comes near."""
    assert largest_number(Recommender(ModelConfig(n_items=100))) < LARGEST / 1e9
