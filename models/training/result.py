"""What a training says of itself, on the way and at its end."""

from dataclasses import dataclass
from typing import Literal

from models.errors import ModelError
from models.recommender import Recommender

SELECTION_METRIC = "recall@10"

StopReason = Literal["epochs", "patience", "time"]


class TrainingDiverged(ModelError):
    """The loss is not a finite number any more.

    Operator action: train with a lower learning rate.
    """


@dataclass(frozen=True, kw_only=True)
class TrainingProgress:
    """Where a training stands after a step."""

    epoch: int
    """The current epoch, from 1."""
    epochs: int
    """Epochs at most."""
    step: int
    """Steps done in this epoch."""
    steps: int
    """Steps of an epoch."""
    loss: float
    """Loss of this step, nats; on CUDA that of a step shortly before, which need not be waited
    for."""
    samples_per_s: float
    """Labelled positions a second since `train` was called, validation left out."""
    best_recall: float | None
    """Best validation Recall@10 so far; None before the first validation."""


@dataclass(frozen=True, kw_only=True)
class Validation:
    """One line of a training's history."""

    epoch: int
    """The epoch in which it was made, from 1."""
    step: int
    """Steps since the start of the training."""
    loss: float
    """Mean training loss over the steps since the validation before, nats."""
    metrics: dict[str, float]
    """What `models.evaluation.evaluate` says."""
    seconds: float
    """Seconds since the start of the training."""


@dataclass(frozen=True, kw_only=True)
class TrainResult:
    """The best weights of a training and how it went."""

    recommender: Recommender
    """The weights of the validation with the best Recall@10, averaged ones where the training
    averages, dropout off."""
    metrics: dict[str, float]
    """Metrics of that validation."""
    best_epoch: int
    """Its epoch, from 1."""
    history: tuple[Validation, ...]
    """Every validation, oldest first."""
    epochs: float
    """Passes over the training windows, the last one perhaps in part."""
    seconds: float
    """Seconds of training and validation, those before an interruption included."""
    stopped_by: StopReason
    """What ended the training."""
