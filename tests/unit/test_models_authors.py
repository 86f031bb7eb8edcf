"""Checkpoints of the published implementation load exactly, or are refused with the key."""

import os
from collections.abc import Callable
from pathlib import Path

import pytest
import torch
from torch import Tensor

from models.authors import import_authors_checkpoint
from models.config import ModelConfig
from models.errors import CheckpointIncompatible
from tests import authors_model

SIZES = {"n_items": 9, "hidden_size": 6, "state_size": 5, "n_blocks": 3}
LRU = "model.lru_blocks.1.lru_layer"


@pytest.fixture
def weights() -> dict[str, Tensor]:
    """A state_dict as the published code saves it."""
    return authors_model.random_weights(5, **SIZES)


def _save(path: Path, weights: dict[str, Tensor]) -> Path:
    torch.save({"model_state_dict": weights}, path / "best_acc_model.pth")
    return path / "best_acc_model.pth"


def test_a_checkpoint_scores_as_in_the_published_code(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Scores after a history, and for a user without one, are those of the padded model."""
    recommender = import_authors_checkpoint(_save(tmp_path, weights))

    outputs = recommender(torch.tensor([0, 3, 9, 1]), torch.tensor([1, 3]))
    scores = recommender.scores(outputs)

    theirs = authors_model.outputs(weights, torch.tensor([[0, 0, 3, 9, 1]]))[0, 1:]
    expected = theirs @ weights["embedding.token.weight"].t() + weights["model.bias"]
    assert not recommender.training
    assert torch.allclose(scores, expected, atol=1e-4)


def test_sizes_are_taken_from_the_tensors(weights: dict[str, Tensor], tmp_path: Path) -> None:
    """Only the length it was trained with has to be told."""
    recommender = import_authors_checkpoint(_save(tmp_path, weights), max_length=200)

    assert recommender.config == ModelConfig(**SIZES, max_length=200)


def test_tensors_that_are_views_are_read_as_what_they_show(
    weights: dict[str, Tensor], tmp_path: Path
) -> None:
    """Transposed, conjugated or negated lazily: a checkpoint keeps that with its tensors."""
    plain = weights | {
        f"{LRU}.in_proj.bias": weights[f"{LRU}.in_proj.bias"].conj().resolve_conj(),
        "model.bias": -weights["model.bias"],
    }
    views = weights | {
        f"{LRU}.in_proj.bias": weights[f"{LRU}.in_proj.bias"].conj(),
        "model.bias": torch.complex(torch.zeros(10), weights["model.bias"]).conj().imag,
        "embedding.token.weight": weights["embedding.token.weight"].t().contiguous().t(),
    }

    expected = import_authors_checkpoint(_save(tmp_path, plain)).state_dict()
    read = import_authors_checkpoint(_save(tmp_path, views)).state_dict()

    assert views["model.bias"].is_neg()
    for name, tensor in read.items():
        assert torch.equal(tensor, expected[name])
        assert tensor.is_contiguous()
        assert not tensor.is_neg()


def _set(name: str, value: object) -> Callable[[dict[str, object]], object]:
    return lambda weights: weights.update({name: value})


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (
            lambda weights: weights.pop(f"{LRU}.in_proj.bias"),
            rf"{LRU}.in_proj.bias: expected complex \(5,\), got nothing",
        ),
        (
            _set(f"{LRU}.in_proj.bias", torch.zeros(5)),
            rf"{LRU}.in_proj.bias: expected complex \(5,\), got real \(5,\)",
        ),
        (
            _set(f"{LRU}.params_log", torch.zeros(3, 4)),
            rf"{LRU}.params_log: expected real \(3, 5\), got real \(3, 4\)",
        ),
        (
            _set("model.bias", torch.zeros(10, dtype=torch.int64)),
            r"model.bias: expected real \(10,\), got torch.int64 \(10,\)",
        ),
        (_set("model.bias", torch.full((10,), torch.nan)), "model.bias: expected finite numbers"),
        (
            _set("model.bias", torch.full((10,), 1e39, dtype=torch.float64)),
            "model.bias: expected finite numbers of 32 bits",
        ),
        (
            _set("model.bias", torch.ones(10).to_sparse()),
            "model.bias: expected a dense tensor, got torch.sparse_coo",
        ),
        pytest.param(
            lambda weights: weights.update(
                {"model.bias": torch.zeros(10, dtype=torch.uint8).view(torch.float4_e2m1fn_x2)}
            ),
            ".*not implemented for 'Float4",
            marks=pytest.mark.skipif(
                not hasattr(torch, "float4_e2m1fn_x2"), reason="this torch knows no such numbers"
            ),
        ),
        (
            _set("embedding.token.weight", torch.ones(1).expand(10**6, 10**4)),
            "embedding.token.weight: expected all of its numbers to be in the file",
        ),
        (
            _set("model.bias", torch.zeros(10, device="meta")),
            "model.bias: expected all of its numbers to be in the file",
        ),
        (
            _set(f"{LRU}.params_log", torch.full((3, 5), 100.0)),
            f"{LRU}.params_log: expected logarithms of finite numbers of 32 bits",
        ),
        (_set("model.bias", [0.0]), r"model.bias: expected real \(10,\), got list"),
        (_set("model.novelty", torch.zeros(1)), r"model.novelty: expected no such key, got real"),
        (
            lambda weights: weights.pop("embedding.token.weight"),
            "embedding.token.weight: expected a tensor of 2 dimensions, got None",
        ),
        (
            _set("embedding.token.weight", torch.zeros(3)),
            r"embedding.token.weight: expected a tensor of 2 dimensions, got \(3,\)",
        ),
        (
            _set("embedding.token.weight", torch.zeros(1, 6)),
            "n_items must be at least 1, got 0",
        ),
        (
            _set("model.lru_blocks.7.lru_layer.params_log", torch.zeros(3, 5)),
            r"model.lru_blocks.7.lru_layer.params_log: expected no such key, got real \(3, 5\)",
        ),
        (
            _set(f"model.lru_blocks.{10**30}.lru_layer.params_log", torch.zeros(3, 5)),
            rf"model.lru_blocks.{10**30}.lru_layer.params_log: expected no such key, got real",
        ),
    ],
)
@pytest.mark.filterwarnings("ignore:Validating sparse tensor")
def test_a_checkpoint_of_another_model_names_the_key(
    weights: dict[str, Tensor],
    tmp_path: Path,
    change: Callable[[dict[str, Tensor]], object],
    message: str,
) -> None:
    """Path, key, what it should hold and what it holds stand in the message."""
    change(weights)
    path = _save(tmp_path, weights)

    with pytest.raises(CheckpointIncompatible, match=rf"best_acc_model\.pth: {message}"):
        import_authors_checkpoint(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        ({"epoch": 3}, r"expected a mapping with the key model_state_dict, got \['epoch'\]"),
        ([1], "expected a mapping with the key model_state_dict, got list"),
        ({"model_state_dict": 3}, "model_state_dict: expected a mapping, got int"),
        ({"model_state_dict": {7: 1}}, "model_state_dict: expected text as keys, got 7"),
    ],
)
def test_a_file_without_weights_says_what_it_has(
    tmp_path: Path, content: object, message: str
) -> None:
    """Another kind of checkpoint is told by its keys."""
    torch.save(content, tmp_path / "other.pth")

    with pytest.raises(CheckpointIncompatible, match=rf"other\.pth: {message}"):
        import_authors_checkpoint(tmp_path / "other.pth")


@pytest.mark.parametrize("content", [b"", b"nonsense", b"PK\x03\x04 half an archive"])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: bytes) -> None:
    """Whatever the bytes are, one error type with the path comes out."""
    (tmp_path / "junk.pth").write_bytes(content)

    with pytest.raises(
        CheckpointIncompatible,
        match=r"junk\.pth: expected a PyTorch checkpoint, torch cannot read it: \w+Error: ",
    ):
        import_authors_checkpoint(tmp_path / "junk.pth")


def test_a_missing_file_is_refused(tmp_path: Path) -> None:
    """A wrong path is the same error, not a traceback of another library."""
    with pytest.raises(
        CheckpointIncompatible, match=r"missing\.pth: cannot be read: No such file or directory$"
    ):
        import_authors_checkpoint(tmp_path / "missing.pth")


class _Trap:
    """A pickle that makes a folder when it is opened carelessly."""

    def __init__(self, path: Path) -> None:
        self.path = path

    def __reduce__(self) -> tuple[object, ...]:
        return os.mkdir, (str(self.path),)


def test_a_checkpoint_runs_no_code(tmp_path: Path) -> None:
    """A pickle that calls something is refused before it does."""
    torch.save({"model_state_dict": _Trap(tmp_path / "sprung")}, tmp_path / "trap.pth")

    with pytest.raises(CheckpointIncompatible, match=r"trap\.pth: expected a PyTorch checkpoint"):
        import_authors_checkpoint(tmp_path / "trap.pth")

    assert not (tmp_path / "sprung").exists()
