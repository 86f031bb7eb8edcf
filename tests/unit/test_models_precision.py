"""Products in bf16: how far they are from float32, and what they never touch."""

from collections.abc import Callable
from dataclasses import replace

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import ModelConfig, TrainingConfig
from models.evaluation import Holdout
from models.packing import Indices, TrainingWindows
from models.recommender import Recommender
from models.scan import use_backend
from models.scan.layout import Rows
from models.scan.loop import LoopScan
from models.training.sampled_loss import Negatives, NegativeSampler
from models.training.step import batch_loss
from models.training.train import train

N_ITEMS = 50
CONFIG = ModelConfig(
    n_items=N_ITEMS, hidden_size=32, state_size=32, max_length=20, dropout=0, lru_dropout=0
)
ROUNDING = 2.0**-8
"""Relative error of one number of bfloat16."""
LOSS_RELATIVE = ROUNDING / 4
"""A mean over hundreds of positions whose errors have random signs."""
GRADIENT_RELATIVE = 4 * ROUNDING
"""Of a gradient's norm: rounded logits, softmax, and two layers back."""


def walks(users: int = 40) -> list[Indices]:
    """Let every user walk around a ring of items, one further each time."""
    generator = np.random.default_rng(0)
    return [
        (generator.integers(N_ITEMS) + np.arange(generator.integers(2, 20))) % N_ITEMS + 1
        for _ in range(users)
    ]


WINDOWS = TrainingWindows.cut(walks(), CONFIG.max_length)
BATCH = WINDOWS.batch(np.arange(len(WINDOWS)))


def sample() -> Negatives:
    """Draw twenty items."""
    counts = np.bincount(WINDOWS.events, minlength=N_ITEMS + 1)
    return NegativeSampler(counts, 20).draw(np.random.default_rng(1))


def recommender() -> Recommender:
    """Make weights well away from the small ones of the start."""
    made = Recommender(CONFIG, torch.Generator().manual_seed(3))
    with torch.no_grad():
        for name, parameter in made.named_parameters():
            if "lru." not in name:
                parameter.mul_(4)
    return made


@pytest.mark.parametrize("negatives", [lambda: None, sample], ids=["all items", "a sample"])
def test_loss_and_gradients_in_bf16_are_near_those_in_fp32(
    negatives: Callable[[], Negatives | None],
) -> None:
    """They differ, by no more than a number of bf16 does; every gradient is float32."""
    losses: dict[str, float] = {}
    gradients: dict[str, dict[str, Tensor]] = {}
    for precision in ("fp32", "bf16"):
        model = recommender()
        loss = batch_loss(model, BATCH, negatives(), precision)
        loss.backward()
        losses[precision] = loss.item()
        gradients[precision] = {name: p.grad for name, p in model.named_parameters()}
        assert loss.dtype == torch.float32

    assert losses["bf16"] != losses["fp32"]
    assert losses["bf16"] == pytest.approx(losses["fp32"], rel=LOSS_RELATIVE)
    for name, expected in gradients["fp32"].items():
        actual = gradients["bf16"][name]
        assert actual.dtype == torch.float32
        assert (actual - expected).norm() <= GRADIENT_RELATIVE * expected.norm(), name


class RecordingScan(LoopScan):
    """The loop, which notes what it is given."""

    def __init__(self) -> None:
        self.dtypes: set[torch.dtype] = set()

    def forward(self, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows) -> Tensor:
        self.dtypes |= {u.dtype, lam.dtype, h0.dtype}
        return super().forward(u, lam, h0, rows)

    def backward(
        self, grad: Tensor, h: Tensor, lam: Tensor, h0: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        self.dtypes |= {grad.dtype, h.dtype}
        return super().backward(grad, h, lam, h0, rows)


def test_the_recurrence_is_float32_whatever_the_precision() -> None:
    """Inputs, eigenvalues, states and gradients of the scan are pairs of float32."""
    scan = RecordingScan()

    with use_backend(scan):
        batch_loss(recommender(), BATCH, None, "bf16").backward()

    assert scan.dtypes == {torch.complex64}


def test_feed_forward_products_are_bf16_and_layer_norms_float32() -> None:
    """What autocast is for happens: the wide activations are bf16, what a block returns is not."""
    model = recommender()
    dtypes: dict[str, torch.dtype] = {}
    for number, block in enumerate(model.blocks):
        block.feed_forward.register_forward_pre_hook(
            lambda _, given, key=f"in {number}": dtypes.update({key: given[0].dtype})
        )
        block.feed_forward.norm.register_forward_hook(
            lambda *_, key=f"out {number}": dtypes.update({key: _[2].dtype})
        )
    saved: list[torch.dtype] = []

    def note(tensor: Tensor) -> Tensor:
        if tensor.shape == (len(BATCH.items), 4 * CONFIG.hidden_size):
            saved.append(tensor.dtype)
        return tensor

    with torch.autograd.graph.saved_tensors_hooks(note, lambda tensor: tensor):
        batch_loss(model, BATCH, None, "bf16")

    assert dtypes == dict.fromkeys(("in 0", "out 0", "in 1", "out 1"), torch.float32)
    assert saved
    assert set(saved) == {torch.bfloat16}


def test_a_training_in_bf16_learns_and_keeps_float32_weights() -> None:
    """The next item of the ring comes first for nearly everyone, as in float32."""
    targets = np.arange(2, N_ITEMS + 1)
    validation = Holdout([np.array([item - 1]) for item in targets], targets)
    training = TrainingConfig(batch_size=8, learning_rate=0.02, max_epochs=10, patience=10)

    results = [
        train(CONFIG, replace(training, precision=precision), walks(100), validation)
        for precision in ("fp32", "bf16")
    ]

    assert all(result.metrics["recall@1"] > 0.9 for result in results)
    losses = [result.history[-1].loss for result in results]
    assert losses[0] != losses[1]
    assert {p.dtype for p in results[1].recommender.parameters()} == {torch.float32}
