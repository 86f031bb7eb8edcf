"""The model computes what its authors' code computes, without pad rows."""

import math

import pytest
import torch
from torch import Tensor, nn

from models.authors import import_authors_checkpoint
from models.config import ModelConfig
from models.lru import Block
from models.recommender import Recommender
from tests import authors_model

DOUBLE_TOLERANCE = 1e-10
SEQUENCES = [[3, 1, 4, 1, 5], [9], [2, 6, 5, 3, 5, 8, 9]]


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """Weights of the published form in double precision."""
    drawn = authors_model.random_weights(7, n_items=9, hidden_size=6, state_size=5, n_blocks=2)
    return {
        name: x.to(torch.complex128 if x.is_complex() else torch.float64)
        for name, x in drawn.items()
    }


@pytest.fixture
def recommender(
    weights: dict[str, Tensor], tmp_path_factory: pytest.TempPathFactory
) -> Recommender:
    """Our model with the same weights in double precision (float32 values, so nothing is lost)."""
    path = tmp_path_factory.mktemp("authors") / "best.pth"
    torch.save({"model_state_dict": weights}, path)
    return import_authors_checkpoint(path).double()


def _packed(sequences: list[list[int]]) -> tuple[Tensor, Tensor]:
    return (
        torch.tensor([item for sequence in sequences for item in sequence]),
        torch.tensor([len(sequence) for sequence in sequences]),
    )


def test_packed_outputs_equal_the_published_padded_form(
    recommender: Recommender, weights: dict[str, Tensor]
) -> None:
    """Every real position has the output of the padded batch."""
    tokens = authors_model.left_padded(SEQUENCES, 9)

    outputs = recommender(*_packed(SEQUENCES))

    expected = authors_model.outputs(weights, tokens)[tokens > 0]
    assert (outputs - expected).abs().max() < DOUBLE_TOLERANCE


def test_a_pad_is_a_segment_of_its_own(
    recommender: Recommender, weights: dict[str, Tensor]
) -> None:
    """The last pad before a sequence has the output of item 0 as a one-item segment."""
    tokens = authors_model.left_padded(SEQUENCES, 9)

    outputs = recommender(torch.tensor([0]), torch.tensor([1]))

    last_pads = [8 - len(sequence) for sequence in SEQUENCES]
    expected = authors_model.outputs(weights, tokens)[range(len(SEQUENCES)), last_pads]
    assert (outputs - expected).abs().max() < DOUBLE_TOLERANCE


def test_gradients_equal_those_of_the_published_padded_form(
    recommender: Recommender, weights: dict[str, Tensor]
) -> None:
    """Training on packed segments, pads included, is training on the padded batch."""
    leaves = {name: x.clone().requires_grad_() for name, x in weights.items()}
    tokens = authors_model.left_padded(SEQUENCES, 8)
    labelled = tokens > 0
    labelled[torch.arange(3), [7 - len(sequence) for sequence in SEQUENCES]] = True
    pairs = [segment for sequence in SEQUENCES for segment in ([0], sequence)]

    outputs = recommender(*_packed(pairs))
    target = torch.linspace(-1, 1, outputs.numel()).view_as(outputs)
    (outputs * target).sum().backward()
    (authors_model.outputs(leaves, tokens)[labelled] * target).sum().backward()

    def difference(ours: Tensor | None, theirs: Tensor) -> float:
        assert ours is not None
        return float((ours - theirs).abs().max())

    grads = {name: x.grad for name, x in leaves.items() if x.grad is not None}
    assert difference(recommender.item_embedding.grad, grads["embedding.token.weight"]) < 1e-9
    for index, block in enumerate(recommender.blocks):
        assert isinstance(block, Block)
        lru, name = block.lru, f"model.lru_blocks.{index}.lru_layer"
        params_log = grads[f"{name}.params_log"]
        for row, parameter in enumerate((lru.nu_log, lru.theta_log, lru.gamma_log)):
            assert difference(parameter.grad, params_log[row]) < 1e-9
        in_weight, in_bias, out_weight = (
            grads[f"{name}.{key}"] for key in ("in_proj.weight", "in_proj.bias", "out_proj.weight")
        )
        for grad, theirs in (
            (lru.in_weight.grad, torch.stack((in_weight.real, in_weight.imag), 1).view(-1, 6)),
            (lru.in_bias.grad, torch.stack((in_bias.real, in_bias.imag), 1).flatten()),
            (lru.out_weight.grad, torch.stack((out_weight.real, -out_weight.imag), 2).flatten(1)),
        ):
            assert difference(grad, theirs) < 1e-9


def test_segments_do_not_see_each_other(recommender: Recommender) -> None:
    """A sequence has the same outputs alone and in a batch."""
    together = recommender(*_packed(SEQUENCES))

    alone = torch.cat([recommender(*_packed([sequence])) for sequence in SEQUENCES])
    assert (together - alone).abs().max() < DOUBLE_TOLERANCE


def test_an_output_depends_on_the_past_alone(recommender: Recommender) -> None:
    """What comes later changes no earlier output."""
    whole = recommender(*_packed([[3, 1, 4, 1]]))

    head = recommender(*_packed([[3, 1]]))
    assert (whole[:2] - head).abs().max() < DOUBLE_TOLERANCE


def test_scores_are_products_with_the_embedding(recommender: Recommender) -> None:
    """Score = output . embedding + bias, for every row of the vocabulary."""
    outputs = recommender(*_packed(SEQUENCES))

    scores = recommender.scores(outputs)

    expected = (outputs[:, None] * recommender.item_embedding).sum(2) + recommender.item_bias
    assert (scores - expected).abs().max() < DOUBLE_TOLERANCE


def test_initial_weights_follow_the_published_code() -> None:
    """Truncated normals everywhere but layer norms and eigenvalues, which start in their ring."""
    config = ModelConfig(n_items=300, hidden_size=32, state_size=500)

    recommender = Recommender(config, torch.Generator().manual_seed(1))

    for name, parameter in recommender.named_parameters():
        if "norm" in name:
            assert torch.equal(parameter, torch.full_like(parameter, float("weight" in name)))
        elif not name.endswith("_log"):
            assert parameter.abs().max() <= 0.04
            if parameter.numel() > 1000:
                assert parameter.std().item() == pytest.approx(
                    0.0176, rel=0.05
                )  # 0.02, cut at 2 sigma
    for block in recommender.blocks:
        assert isinstance(block, Block)
        lam = block.lru.eigenvalues()
        assert (lam.abs() >= 0.8 - 1e-6).all()
        assert (lam.abs() <= 0.99 + 1e-6).all()
        assert lam.abs().square().mean().item() == pytest.approx((0.8**2 + 0.99**2) / 2, abs=0.02)
        assert block.lru.theta_log.exp().mean().item() == pytest.approx(math.pi, abs=0.3)
        gamma = block.lru.gamma_log.exp()
        assert (gamma.square() + lam.abs().square() - 1).abs().max() < 1e-6


def test_one_generator_seed_gives_one_model() -> None:
    """Initial weights come from the generator alone."""
    config = ModelConfig(n_items=5)

    one, same, other = (
        Recommender(config, torch.Generator().manual_seed(seed)) for seed in (1, 1, 2)
    )

    assert all(map(torch.equal, one.parameters(), same.parameters()))
    assert not torch.equal(one.item_embedding, other.item_embedding)


def test_dropout_acts_in_training_alone() -> None:
    """Outputs are random in training mode, each kind of dropout on its own, and fixed outside."""
    items, lengths = torch.tensor([1, 2, 3]), torch.tensor([3])
    for rates in ({"dropout": 0.5, "lru_dropout": 0.0}, {"dropout": 0.0, "lru_dropout": 0.5}):
        recommender = Recommender(ModelConfig(n_items=5, **rates))  # type: ignore[arg-type]  # two floats

        assert not torch.equal(recommender(items, lengths), recommender(items, lengths))
        recommender.eval()
        assert torch.equal(recommender(items, lengths), recommender(items, lengths))


def test_lengths_must_cover_the_items() -> None:
    """A wrong sum is refused with both numbers."""
    with pytest.raises(ValueError, match="add up to the 3 items, got 4"):
        Recommender(ModelConfig(n_items=5))(torch.tensor([1, 2, 3]), torch.tensor([4]))


def test_every_parameter_learns() -> None:
    """A loss over the scores reaches each parameter."""
    recommender = Recommender(ModelConfig(n_items=5))

    scores = recommender.scores(recommender(torch.tensor([0, 1, 2]), torch.tensor([1, 2])))
    nn.functional.cross_entropy(scores, torch.tensor([1, 2, 3])).backward()

    assert all(parameter.grad is not None for parameter in recommender.parameters())
