"""Laws of steps by graphs: whatever comes in which order, they are the steps of `advance`."""

import functools
from dataclasses import dataclass

import pytest
import torch
from hypothesis import example, given
from hypothesis import strategies as st
from torch import Tensor

from models.config import ModelConfig
from models.recommender import Recommender
from models.serving import graphs as serving_graphs
from models.serving.graphs import StepGraphs
from models.serving.model import ServingModel
from tests.devices import capture_on, on_each_device

TOLERANCE = 1e-5
"""States and outputs here are below 10; float32 kernels differ with the number of rows."""

N_ITEMS = 20
SLOTS = 12

_USERS = st.lists(
    st.tuples(st.integers(0, SLOTS - 1), st.integers(0, N_ITEMS)),
    max_size=SLOTS,
    unique_by=lambda user: user[0],
)


@dataclass(frozen=True)
class Step:
    """Users with one item each: (slot, item)."""

    users: list[tuple[int, int]]


_EVENTS = st.lists(
    st.one_of(
        st.builds(Step, _USERS),
        st.builds(Step, _USERS),
        st.sampled_from(["other weights", "other sizes", "grow", "write"]),
    ),
    min_size=1,
    max_size=25,
)


@functools.cache
def _models(device: torch.device) -> list[ServingModel]:
    """Two models of one shape and one of another, with weights so large that a wrong one shows."""
    models = []
    for seed, state_size in ((3, 12), (4, 12), (5, 6)):
        config = ModelConfig(n_items=N_ITEMS, hidden_size=8, state_size=state_size, n_blocks=3)
        recommender = Recommender(config, torch.Generator().manual_seed(seed)).eval()
        with torch.no_grad():
            for name, parameter in recommender.named_parameters():
                if not name.endswith("_log") and "norm" not in name:
                    parameter.mul_(15)
        models.append(ServingModel(recommender, device))
    return models


@on_each_device
@given(events=_EVENTS)
@example(events=[Step([(0, 3)]), "other weights", Step([(0, 3)]), Step([(0, 4)])])
@example(events=[Step([(0, 3)]), "grow", Step([(0, 3)]), Step([(0, 4)])])
def test_steps_by_graphs_are_those_of_advance(
    device: torch.device, events: list[Step | str]
) -> None:
    """Through other weights, other shapes, larger tensors and writes from outside."""
    graphs = StepGraphs(capture_on(device))
    weights, shape = 0, 0
    model = _models(device)[0]
    states = model.init_state(SLOTS + 1)
    truth = list(states[:SLOTS].clone())
    kept: list[tuple[Tensor, Tensor]] = []
    for event in events:
        if isinstance(event, Step):
            slots = torch.tensor([slot for slot, _ in event.users], dtype=torch.int64)
            items = torch.tensor([item for _, item in event.users], dtype=torch.int64)

            outputs = graphs.step(model, states, slots, items)

            if not event.users:
                assert outputs is None
                continue
            assert outputs is not None
            before = torch.stack([truth[slot] for slot in slots.tolist()])
            moved, expected = model.advance(before, items, torch.ones_like(items))
            for slot, state in zip(slots.tolist(), moved, strict=True):
                truth[slot] = state
            kept.append((outputs, expected))
        elif event == "grow":
            states = torch.cat([states, model.init_state(3)])
        elif event == "write":
            states[1] = 0.5
            truth[1] = states[1].clone()
        else:
            if event == "other weights":
                weights = 1 - weights
            else:
                shape = 1 - shape
                states = None  # type: ignore[assignment]
            model = _models(device)[2 if shape else weights]
            if states is None:
                states = model.init_state(SLOTS + 1)
                truth = list(states[:SLOTS].clone())
        for slot, state in enumerate(truth):
            assert (states[slot] - state).abs().max() < TOLERANCE

    for outputs, expected in kept:  # also the early ones: nothing is written over
        assert (outputs - expected).abs().max() < TOLERANCE


@on_each_device
@pytest.mark.parametrize("users", [1, 8, 9, 16, 17, 100])
def test_a_graph_is_used_for_any_number_up_to_the_next_power_of_two(
    users: int, device: torch.device
) -> None:
    """After the first batch of a size, nothing but what was recorded runs for smaller ones."""
    recorded = []

    def count(body: serving_graphs.Body, device: torch.device) -> serving_graphs.Body:
        recorded.append(body)
        return capture_on(device)(body, device)

    model, graphs = _models(device)[0], StepGraphs(count)
    states = model.init_state(users + 1)
    size = max(8, 1 << (users - 1).bit_length())
    for some in (users, size // 2 + 1, users):
        some = min(some, users)
        items = torch.full((some,), 3)
        before = states[:some].clone()

        outputs = graphs.step(model, states, torch.arange(some), items)

        moved, expected = model.advance(before, items, torch.ones_like(items))
        assert outputs is not None
        assert (outputs - expected).abs().max() < TOLERANCE
        assert (states[:some] - moved).abs().max() < TOLERANCE
    assert len(recorded) == 1


@on_each_device
def test_what_is_no_work_for_a_graph_is_left_alone(
    device: torch.device, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Several items of a user, nobody, more users than a graph is for: `advance` does it."""
    monkeypatch.setattr(serving_graphs, "MAX_USERS", 8)
    model, graphs = _models(device)[0], StepGraphs(capture_on(device))
    states = model.init_state(20)
    for slots, items in ((2, 3), (0, 0), (9, 9)):
        taken = graphs.step(
            model, states, torch.arange(slots), torch.ones(items, dtype=torch.int64)
        )
        assert taken is None
    assert states.abs().max() == 0
    most = torch.arange(8)
    assert graphs.step(model, states, most, torch.ones_like(most)) is not None


@on_each_device
def test_no_graph_is_captured_while_a_model_is_loaded(device: torch.device) -> None:
    """Loading may wait for the whole device, which ends a capture; old graphs serve on."""
    model, graphs = _models(device)[0], StepGraphs(capture_on(device))
    states = model.init_state(20)
    few, many = torch.arange(8), torch.arange(9)

    assert graphs.step(model, states, few, torch.ones_like(few)) is not None
    with serving_graphs.SETTING_UP:
        assert graphs.step(model, states, many, torch.ones_like(many)) is None
        assert graphs.step(model, states, few, torch.ones_like(few)) is not None
    assert graphs.step(model, states, many, torch.ones_like(many)) is not None
