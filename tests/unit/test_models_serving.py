"""What the serving model refuses, keeps and leaves alone; its laws are in tests/property."""

import pytest
import torch
from torch import Tensor

from models.config import ModelConfig
from models.recommender import Recommender
from models.serving.model import ServingModel
from models.serving.native import NativeServing, load_native_serving
from models.serving.native_top_k import NativeCatalogue

CONFIG = ModelConfig(n_items=9, hidden_size=4, state_size=6, n_blocks=2)


@pytest.fixture
def recommender() -> Recommender:
    """A small model."""
    return Recommender(CONFIG, torch.Generator().manual_seed(0)).eval()


@pytest.fixture(scope="module")
def native(tmp_path_factory: pytest.TempPathFactory) -> NativeServing:
    """The compiled form."""
    return load_native_serving(tmp_path_factory.mktemp("native"))


@pytest.fixture(params=["torch", "native"])
def model(
    request: pytest.FixtureRequest, recommender: Recommender, native: NativeServing
) -> ServingModel:
    """The same model as it serves, in either form."""
    return ServingModel(recommender, native=native if request.param == "native" else None)


def test_a_state_begins_as_zeros_to_write_into(model: ServingModel) -> None:
    """Shape, dtype and device are the contract's, and the caller may keep rows in the tensor."""
    state = model.init_state(3)

    state[1] = model.advance(model.init_state(1), torch.tensor([2]), torch.tensor([1]))[0][0]

    assert state.shape == (3, 2, 6)
    assert state.dtype == torch.complex64
    assert state.device == model.device
    assert state[[0, 2]].abs().max() == 0
    assert state[1].abs().max() > 0


@pytest.mark.parametrize(
    "wrong",
    [
        {"outputs": torch.zeros(2, 5)},
        {"outputs": torch.zeros(2, 4, dtype=torch.float64)},
        {"excluded": torch.zeros((4, 3), dtype=torch.int32)[:2]},
        {"excluded": torch.ones((2, 3), dtype=torch.int64)[:1]},
        {"unavailable": torch.zeros(9, dtype=torch.bool)},
        {"unavailable": torch.zeros(10, dtype=torch.uint8)},
    ],
    ids=["width", "floats", "integers", "users", "items", "flags"],
)
def test_native_top_k_reads_no_memory_that_does_not_hold_what_it_takes(
    native: NativeServing, wrong: dict[str, torch.Tensor]
) -> None:
    """It leaves such arguments to torch, which says what is wrong with them."""
    catalogue = NativeCatalogue(native, torch.randn(10, 4), torch.randn(10))
    right = {
        "outputs": torch.zeros(2, 4),
        "excluded": torch.ones((2, 3), dtype=torch.int64),
        "unavailable": torch.zeros(10, dtype=torch.bool),
    }

    assert catalogue.top_k(k=3, **right) is not None
    assert catalogue.top_k(k=3, **right | wrong) is None


def test_a_conjugation_that_is_still_to_do_is_not_passed_over(model: ServingModel) -> None:
    """Torch puts it off, and the memory holds the number before it."""
    state = torch.randn(1, 2, 6, dtype=torch.complex64, generator=torch.Generator().manual_seed(1))
    item, one = torch.tensor([2]), torch.tensor([1])

    moved, _ = model.advance(state.conj(), item, one)

    torch.testing.assert_close(moved, model.advance(state.conj().resolve_conj(), item, one)[0])


@pytest.mark.parametrize(
    ("excluded", "message"),
    [
        ([[1, 10]], r"excluded items must be in 0\.\.9, got 1\.\.10"),
        ([[-1, 2]], r"excluded items must be in 0\.\.9, got -1\.\.2"),
    ],
)
def test_top_k_refuses_what_does_not_fit(
    model: ServingModel, excluded: list[list[int]], message: str
) -> None:
    """An item that is none is never left out silently, and no item is no list."""
    with pytest.raises(ValueError, match=message):
        model.top_k(torch.randn(1, 4), 3, torch.tensor(excluded))
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        model.top_k(torch.randn(1, 4), 0)


@pytest.mark.parametrize(
    ("items", "lengths", "message"),
    [
        ([1, 2], [2, 0], "at least 1 item, got a length of 0"),
        ([1, 2], [1, 2], "add up to the 2 items, got 3"),
        ([1, 10], [1, 1], r"items must be in 0\.\.9, got 1\.\.10"),
        ([-1, 2], [1, 1], r"items must be in 0\.\.9, got -1\.\.2"),
    ],
)
def test_advance_refuses_what_does_not_fit(
    model: ServingModel, items: list[int], lengths: list[int], message: str
) -> None:
    """Each refusal says what was expected and what came."""
    with pytest.raises(ValueError, match=message):
        model.advance(model.init_state(2), torch.tensor(items), torch.tensor(lengths))


def test_a_state_of_another_model_is_refused(model: ServingModel) -> None:
    """A state with other blocks or channels is never read as if it were this model's."""
    items = torch.tensor([1, 2])
    for shape in ((2, 1, 6), (2, 2, 5)):
        state = torch.zeros(shape, dtype=torch.complex64)
        message = rf"state of 2 users must have shape \(2, 2, 6\), got \({shape[0]}, {shape[1]}"

        with pytest.raises(ValueError, match=message):
            model.advance(state, items, torch.ones_like(items))
        with pytest.raises(ValueError, match=message):
            model.readout(state, items)


def test_readout_refuses_what_does_not_fit(model: ServingModel) -> None:
    """Readout checks its items as advance does."""
    with pytest.raises(ValueError, match=r"items must be in 0\.\.9, got 10\.\.10"):
        model.readout(model.init_state(1), torch.tensor([10]))


@pytest.mark.parametrize("lengths", [[1, 1, 1], [2, 1]], ids=["step", "scan"])
def test_advance_leaves_its_inputs_alone(model: ServingModel, lengths: list[int]) -> None:
    """A state that was handed in is the same afterwards, so a batch may be done again."""
    state = torch.randn(len(lengths), 2, 6, dtype=torch.complex64)
    items = torch.tensor([1, 2, 3])
    before = state.clone()

    first = model.advance(state, items, torch.tensor(lengths))
    second = model.advance(state, items, torch.tensor(lengths))

    assert torch.equal(state, before)
    assert items.tolist() == [1, 2, 3]
    assert all(map(torch.equal, first, second))


def test_an_empty_micro_batch_gives_empty_results(model: ServingModel) -> None:
    """No users is a batch like any other."""
    nothing = torch.zeros(0, dtype=torch.int64)

    state, outputs = model.advance(model.init_state(0), nothing, nothing)
    scores, items = model.top_k(outputs, 3)

    assert state.shape == (0, 2, 6)
    assert outputs.shape == model.readout(state, nothing).shape == (0, 4)
    assert scores.shape == items.shape == (0, 3)


def test_training_on_does_not_reach_a_serving_model(
    recommender: Recommender, model: ServingModel
) -> None:
    """The weights are copies: the trainer may go on with the recommender."""

    def results() -> tuple[Tensor, Tensor]:
        outputs = model.advance(model.init_state(1), torch.tensor([4, 5]), torch.tensor([2]))[1]
        return outputs, model.scores(outputs)

    before = results()
    with torch.no_grad():
        for parameter in recommender.parameters():
            parameter.add_(1)

    assert all(map(torch.equal, before, results()))


def test_scores_are_the_recommenders(recommender: Recommender, model: ServingModel) -> None:
    """One score for every row of the vocabulary, the pad token's included."""
    outputs = torch.randn(5, 4)

    scores = model.scores(outputs)

    assert scores.shape == (5, 10)
    assert torch.allclose(scores, recommender.scores(outputs).detach(), atol=1e-6)


def test_top_k_leaves_out_what_it_is_told_to(model: ServingModel) -> None:
    """Seen and unavailable items are missing from the best ones, and so is the pad token."""
    outputs = torch.randn(2, 4)
    unavailable = torch.zeros(10, dtype=torch.bool)
    unavailable[[1, 2]] = True

    scores, items = model.top_k(outputs, 9, torch.tensor([[3, 0], [4, 5]]), unavailable)

    assert [sorted(row) for row in items.tolist()] == [
        [0, 0, 0, 4, 5, 6, 7, 8, 9],
        [0, 0, 0, 0, 3, 6, 7, 8, 9],
    ]
    assert (scores.isinf() == (items == 0)).all()
    kept = items > 0
    assert torch.allclose(scores[kept], model.scores(outputs).gather(1, items)[kept], atol=1e-6)
