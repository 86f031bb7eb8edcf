"""Sizes of the model and settings of training: frozen, checked when made. Knows no tensor."""

import math
from dataclasses import dataclass
from typing import Literal

MAX_LENGTH = 100_000
"""Longest window: a state row remembers as many items, at 8 bytes, and leaves in one record of the
changelog, which has 900,000."""
_MOST = {
    "n_items": 2**31 - 2,  # so that an index fits 32 bits, the pad's included
    "hidden_size": 2**16,  # far above any use: one block has 34 G weights
    "state_size": 2**17,
    "n_blocks": 1000,  # each costs milliseconds to build, whatever its weights are
    "max_length": MAX_LENGTH,
}


@dataclass(frozen=True, kw_only=True)
class ModelConfig:
    """What fixes the shape of a Recommender; the defaults are those of the published model.

    Raises:
        ValueError: a field breaks its rule; the message gives field, rule and value.
    """

    n_items: int
    """Items in the vocabulary, the pad token not counted; from 1 to 2**31 - 2."""
    hidden_size: int = 64
    """Width d of embeddings and activations; from 1 to 65,536."""
    state_size: int = 128
    """Complex channels c of one block's state; from 1 to 131,072. The published model has twice
    d."""
    n_blocks: int = 2
    """Blocks of recurrence and feed-forward; from 1 to 1,000."""
    max_length: int = 50
    """Positions of a training window and items the evaluation sees; from 2 to `MAX_LENGTH`."""
    dropout: float = 0.2
    """Dropout of the embedding and the feed-forward layers; in [0, 1)."""
    lru_dropout: float = 0.2
    """Dropout of the recurrence's output; in [0, 1)."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "n_items", "hidden_size", "state_size", "n_blocks")
        _at_least(self, 2, "max_length")
        for field, most in _MOST.items():
            if getattr(self, field) > most:
                msg = f"{field} must be at most {most}, got {getattr(self, field)}"
                raise ValueError(msg)
        for field in ("dropout", "lru_dropout"):
            _below_one(field, getattr(self, field))


@dataclass(frozen=True, kw_only=True)
class TrainingConfig:
    """How to train; the defaults are those of the published model.

    But for two: the authors validate after so many steps (500 for ML-1M), and pass over the data up
    to 500 times.

    Raises:
        ValueError: a field breaks its rule; the message gives field, rule and value.
    """

    batch_size: int = 128
    """Windows in one step."""
    learning_rate: float = 1e-3
    """Step size of AdamW."""
    weight_decay: float = 0.01
    """Decoupled weight decay; acts on the recurrence's eigenvalues too, not on biases and layer
    norms."""
    adam_epsilon: float = 1e-9
    """AdamW's epsilon."""
    clip_norm: float = 5.0
    """Largest norm of the gradient of all parameters together."""
    ema_decay: float | None = None
    """Decay a step of the running average of the weights, which is what is validated and released;
    in [0, 1), 0.999 looks back over about a thousand steps; None: the weights themselves are."""
    sampled_negatives: int | None = None
    """Items drawn in each step that labels are scored against, instead of all; at least 1; needed
    above some 100,000 items. None, or not fewer than there are items: all."""
    max_epochs: int = 100
    """Passes over the training windows at most."""
    patience: int = 10
    """Validations without a better Recall@10 before training stops."""
    validate_every_steps: int | None = None
    """Steps between validations; None: after each epoch."""
    time_budget_s: float | None = None
    """Seconds after which training stops with the best weights so far; None: no limit."""
    precision: Literal["fp32", "bf16"] = "fp32"
    """Numbers that the feed-forward layers and the scores are multiplied in; weights, recurrence,
    layer norms, loss, sums and the optimizer are float32 always, and so is validation. bf16 may be
    faster on a GPU, at 1/256 of relative error a product."""
    seed: int = 0
    """Seed of initial weights, order of windows, dropout and drawn items."""

    def __post_init__(self) -> None:
        _at_least(self, 1, "batch_size", "max_epochs", "patience")
        _at_least(self, 0, "weight_decay")
        if not 0 <= self.seed < 2**63:  # PyTorch takes 64 bits, and each process adds its number
            msg = f"seed must be at least 0 and below 2^63, got {self.seed}"
            raise ValueError(msg)
        for field in ("learning_rate", "adam_epsilon", "clip_norm"):
            _positive(field, getattr(self, field))
        if self.precision not in ("fp32", "bf16"):
            msg = f"precision must be fp32 or bf16, got {self.precision}"
            raise ValueError(msg)
        if self.ema_decay is not None:
            _below_one("ema_decay", self.ema_decay)
        if self.sampled_negatives is not None:
            _at_least(self, 1, "sampled_negatives")
        if self.validate_every_steps is not None:
            _at_least(self, 1, "validate_every_steps")
        if self.time_budget_s is not None:
            _positive("time_budget_s", self.time_budget_s)


def _at_least(config: ModelConfig | TrainingConfig, least: int, *fields: str) -> None:
    for field in fields:
        value = getattr(config, field)
        if not least <= value < math.inf:
            msg = f"{field} must be at least {least}, got {value}"
            raise ValueError(msg)


def _below_one(field: str, value: float) -> None:
    if not 0 <= value < 1:
        msg = f"{field} must be in [0, 1), got {value}"
        raise ValueError(msg)


def _positive(field: str, value: float) -> None:
    if not 0 < value < math.inf:
        msg = f"{field} must be positive and finite, got {value}"
        raise ValueError(msg)
