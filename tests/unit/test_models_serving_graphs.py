"""What a graph does that is not what was captured: it is noticed before anyone is served by it."""

import logging
from collections.abc import Callable

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.recommender import Recommender
from models.serving.graphs import Body, StepGraphs, capture_cuda
from models.serving.model import ServingModel
from tests.recorded_graph import capture_by_recording

CONFIG = ModelConfig(n_items=9, hidden_size=4, state_size=6, n_blocks=2)


def _fails_to_capture(body: Body, states: Tensor) -> Body:
    body()
    raise RuntimeError("operation not permitted when stream is capturing")


def _fails_to_replay(body: Body, states: Tensor) -> Body:
    def replay() -> Tensor:
        body()
        raise RuntimeError("an illegal memory access was encountered")

    return replay


def _forgets_the_states(body: Body, states: Tensor) -> Body:
    def replay() -> Tensor:
        before = states.clone()
        outputs = body()
        states.copy_(before)
        return outputs

    return replay


def _writes_to_others(body: Body, states: Tensor) -> Body:
    def replay() -> Tensor:
        states[4, 1, 2] = 1
        return body()

    return replay


def _gives_old_outputs(body: Body, states: Tensor) -> Body:
    outputs = body()

    def replay() -> Tensor:
        body()
        return outputs

    return replay


def _gives_no_numbers(body: Body, states: Tensor) -> Body:
    return lambda: body() * torch.nan


@pytest.mark.parametrize(
    ("fault", "reason"),
    [
        (_fails_to_capture, "RuntimeError: operation not permitted when stream is capturing"),
        (_fails_to_replay, "RuntimeError: an illegal memory access was encountered"),
        (_forgets_the_states, "its results are not those of single launches"),
        (_writes_to_others, "its results are not those of single launches"),
        (_gives_old_outputs, "its results are not those of single launches"),
        (_gives_no_numbers, "its results are not those of single launches"),
    ],
)
def test_a_graph_that_does_something_else_serves_nobody(
    fault: Callable[[Body, Tensor], Body], reason: str, caplog: pytest.LogCaptureFixture
) -> None:
    """States and outputs are those of `advance`, one warning says why, and graphs stay off."""
    model = ServingModel(Recommender(CONFIG, torch.Generator().manual_seed(0)).eval())
    states = torch.randn(
        (6, 2, 6), dtype=torch.complex64, generator=torch.Generator().manual_seed(1)
    )
    slots, items = torch.tensor([3, 0]), torch.tensor([2, 5])
    expected = states.clone()
    expected[slots], expected_outputs = model.advance(states[slots], items, torch.tensor([1, 1]))
    graphs = StepGraphs(lambda body, device: fault(body, states))

    outputs = graphs.step(model, states, slots, items)

    assert outputs is not None
    assert torch.equal(outputs, expected_outputs)
    assert torch.equal(states, expected)
    assert graphs.step(model, states, slots, items) is None
    assert graphs.step(model, states.clone(), torch.arange(4), torch.arange(4)) is None
    assert torch.equal(states, expected)
    assert caplog.messages == [f"no CUDA graphs from now on; the one for 8 users: {reason}"]
    assert caplog.records[0].levelno == logging.WARNING


def test_a_second_graph_that_fails_ends_the_first_one_too(caplog: pytest.LogCaptureFixture) -> None:
    """A device that does one of them wrong is not trusted with any."""
    captured = []

    def second_fails(body: Body, device: torch.device) -> Body:
        captured.append(body)
        return capture_by_recording(body, device) if len(captured) == 1 else lambda: body() + 1

    model = ServingModel(Recommender(CONFIG, torch.Generator().manual_seed(0)).eval())
    states, graphs = model.init_state(30), StepGraphs(second_fails)
    for users in (3, 3, 20):
        assert (
            graphs.step(model, states, torch.arange(users), torch.ones_like(torch.arange(users)))
            is not None
        )

    assert graphs.step(model, states, torch.tensor([1]), torch.tensor([1])) is None
    assert len(caplog.messages) == 1


def test_without_cuda_a_capture_is_one_warning(caplog: pytest.LogCaptureFixture) -> None:
    """The real capture, where there is nothing to capture with: the step is made all the same."""
    if torch.cuda.is_available():
        pytest.skip("there is something to capture with")
    model = ServingModel(Recommender(CONFIG, torch.Generator().manual_seed(0)).eval())
    states, graphs = model.init_state(3), StepGraphs(capture_cuda)

    outputs = graphs.step(model, states, torch.tensor([1]), torch.tensor([4]))

    assert outputs is not None
    assert states[1].abs().max() > 0
    assert "no CUDA graphs from now on; the one for 8 users" in caplog.text
