"""Laws of serving: however events are cut into micro-batches, the numbers are the model's own."""

import functools

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.config import ModelConfig
from models.recommender import Recommender
from models.serving import model as serving
from models.serving.model import ServingModel

TOLERANCE = 1e-5
"""States and outputs here are below 10; float32 kernels differ with the number of rows."""

N_ITEMS = 20

SEQUENCES = st.lists(
    st.lists(st.integers(0, N_ITEMS), min_size=1, max_size=12), min_size=1, max_size=5
)


@functools.cache
def _models() -> tuple[Recommender, ServingModel]:
    """One model with weights large enough that a wrong one shows."""
    config = ModelConfig(n_items=N_ITEMS, hidden_size=8, state_size=12, n_blocks=3)
    recommender = Recommender(config, torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        for name, parameter in recommender.named_parameters():
            if not name.endswith("_log") and "norm" not in name:
                parameter.mul_(15)
    return recommender, ServingModel(recommender)


def _packed(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor([item for sequence in sequences for item in sequence], dtype=torch.int64),
        torch.tensor([len(sequence) for sequence in sequences]),
    )


@given(SEQUENCES)
def test_advance_equals_the_model_in_training_form(sequences: list[list[int]]) -> None:
    """From zero states, one micro-batch of whole histories has the Recommender's outputs."""
    recommender, model = _models()
    packed = _packed(sequences)

    _, outputs = model.advance(model.init_state(len(sequences)), *packed)

    with torch.no_grad():
        expected = recommender(*packed)
    assert (outputs - expected).abs().max() < TOLERANCE


@given(SEQUENCES, st.integers(1, 9))
def test_single_steps_equal_one_scan(sequences: list[list[int]], max_rows: int) -> None:
    """One event at a time, or all at once in stretches of any size: same states, same outputs."""
    _, model = _models()
    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(serving, "MAX_ROWS", max_rows)
        scanned, scanned_outputs = model.advance(
            model.init_state(len(sequences)), *_packed(sequences)
        )

    states, outputs = [], []
    for sequence in sequences:
        state = model.init_state(1)
        for item in sequence:
            state, output = model.advance(state, torch.tensor([item]), torch.tensor([1]))
            outputs.append(output)
        states.append(state)

    assert (torch.cat(states) - scanned).abs().max() < TOLERANCE
    assert (torch.cat(outputs) - scanned_outputs).abs().max() < TOLERANCE


@given(SEQUENCES, st.randoms(use_true_random=False))
def test_any_cut_into_micro_batches_changes_nothing(
    sequences: list[list[int]], random: object
) -> None:
    """Users' events in micro-batches of random users and lengths end in the same states."""
    _, model = _models()
    expected, expected_outputs = model.advance(
        model.init_state(len(sequences)), *_packed(sequences)
    )
    states = list(model.init_state(len(sequences)))
    outputs: list[list[Tensor]] = [[] for _ in sequences]
    rest = [list(sequence) for sequence in sequences]

    while any(rest):
        users = [user for user, items in enumerate(rest) if items]
        users = random.sample(users, random.randint(1, len(users)))  # type: ignore[attr-defined]
        cuts = [random.randint(1, len(rest[user])) for user in users]  # type: ignore[attr-defined]
        events = [rest[user][:cut] for user, cut in zip(users, cuts, strict=True)]
        batch_states, batch_outputs = model.advance(
            torch.stack([states[user] for user in users]), *_packed(events)
        )
        for user, cut, state, output in zip(
            users, cuts, batch_states, torch.split(batch_outputs, cuts), strict=True
        ):
            states[user], rest[user] = state, rest[user][cut:]
            outputs[user].append(output)

    assert (torch.stack(states) - expected).abs().max() < TOLERANCE
    flat = torch.cat([output for of_user in outputs for output in of_user])
    assert (flat - expected_outputs).abs().max() < TOLERANCE


@given(SEQUENCES)
def test_readout_is_the_last_output(sequences: list[list[int]]) -> None:
    """The state and the last item alone give the output that advance gave at that item."""
    _, model = _models()
    items, lengths = _packed(sequences)
    states, outputs = model.advance(model.init_state(len(sequences)), items, lengths)
    last = lengths.cumsum(0) - 1

    assert (model.readout(states, items[last]) - outputs[last]).abs().max() < TOLERANCE


@given(st.integers(1, 8))
def test_the_cold_start_is_the_pad_from_nothing(n: int) -> None:
    """The output for users without history is the Recommender's for a one-pad segment."""
    recommender, model = _models()
    pads = torch.zeros(n, dtype=torch.int64)

    with torch.no_grad():
        expected = recommender(pads, torch.ones_like(pads))

    assert (model.cold_start() - expected).abs().max() < TOLERANCE
