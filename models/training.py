"""Training of a Recommender: next item by cross-entropy, best weights by validation.

AdamW, gradients clipped by their common norm, early stopping by validation Recall@10, as in the
LRURec authors' code (Yue et al., WSDM 2024, arXiv 2310.02367). On request, what is validated and
kept is the running average of the weights (`models.averaging`), and labels are scored against a
sample of the items instead of all (`models.sampled_loss`). Prints nothing; progress leaves through
a callback.
"""

import copy
import math
import time
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Literal

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.allocator import freed_memory_kept
from models.averaging import add_to_average
from models.config import ModelConfig, TrainingConfig
from models.errors import ModelError
from models.evaluation import Holdout, evaluate
from models.loss import cross_entropy
from models.packing import PackedBatch, TrainingWindows
from models.recommender import Recommender
from models.sampled_loss import Negatives, NegativeSampler, sampled_cross_entropy
from models.scan import PackedLayout
from models.training_checkpoint import (
    read_training_checkpoint,
    training_identity,
    write_training_checkpoint,
)

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
    """Loss of this step, nats."""
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


def train(
    config: ModelConfig,
    training: TrainingConfig,
    sequences: Sequence[npt.ArrayLike],
    validation: Holdout,
    *,
    mask_window: bool = True,
    progress: Callable[[TrainingProgress], None] | None = None,
    checkpoint_path: Path | None = None,
    device: torch.device | str = "cpu",
) -> TrainResult:
    """Train a recommender from the start, or from where an interrupted call left off.

    The result depends on the arguments and the machine's arithmetic alone, interrupted or not; a
    time budget makes it depend on the machine's speed too. torch's global random state is left as
    it was.

    Args:
        config: sizes of the model.
        training: how to train.
        sequences: training items of each user, indices from 1 to n_items, oldest first.
        validation: users and targets by which the best weights are chosen; at least one.
        mask_window: whether validation masks the items that the model sees.
        progress: called after every step. An exception from it ends the training; with a checkpoint
            the next call goes on from the last validation.
        checkpoint_path: written at every validation; read at the start if it exists.
        device: where to train.

    Returns:
        The best weights, on `device`.

    Raises:
        ValueError: there is no item to train on or no user to validate, or an index is too big.
        ResumeMismatch: the checkpoint is of other settings or data.
        TrainingDiverged: the loss is not finite.
    """
    device = torch.device(device)
    windows = TrainingWindows.cut(sequences, config.max_length)
    if len(windows) == 0:
        msg = "training needs at least one item, got none in any sequence"
        raise ValueError(msg)
    if windows.events.max() > config.n_items:
        msg = f"sequences must hold indices up to {config.n_items}, got {windows.events.max()}"
        raise ValueError(msg)
    rng_devices = [device] if device.type == "cuda" else []
    with freed_memory_kept(), torch.random.fork_rng(rng_devices):
        run = _Run(config, training, windows, validation, mask_window=mask_window, device=device)
        return run.to_the_end(progress, checkpoint_path)


def create_optimizer(recommender: Recommender, training: TrainingConfig) -> torch.optim.AdamW:
    """Return AdamW over every parameter.

    Biases and layer norms are not decayed, nu, theta and gamma are, as in the authors' code.
    """
    decayed: list[Tensor] = []
    free: list[Tensor] = []
    for name, parameter in recommender.named_parameters():
        (free if "bias" in name or "norm" in name else decayed).append(parameter)
    return torch.optim.AdamW(
        [
            {"params": decayed, "weight_decay": training.weight_decay},
            {"params": free, "weight_decay": 0.0},
        ],
        lr=training.learning_rate,
        eps=training.adam_epsilon,
        fused=True,
    )


def batch_loss(
    recommender: Recommender, batch: PackedBatch, negatives: Negatives | None = None
) -> Tensor:
    """Return the mean loss over all positions of a batch, each of which has a label.

    Args:
        recommender: the model.
        batch: the positions.
        negatives: what labels are scored against, on any device; None: every item.
    """
    device = recommender.item_embedding.device
    layout = PackedLayout.from_lengths(torch.from_numpy(batch.lengths), device)
    # The loss is a mean: the order of its rows is free, and time-major needs no way back.
    items, labels = (
        torch.from_numpy(array).to(device)[layout.to_time_major]
        for array in (batch.items, batch.labels)
    )
    outputs = recommender.forward_time_major(items, layout)
    weight, bias = recommender.item_embedding, recommender.item_bias
    if negatives is None:
        return cross_entropy(outputs, weight, bias, labels)
    negatives = Negatives(*(part.to(device) for part in negatives))
    return sampled_cross_entropy(outputs, weight, bias, labels, negatives)


def negative_sampler(
    config: ModelConfig, training: TrainingConfig, windows: TrainingWindows
) -> NegativeSampler | None:
    """Return what draws the items to score against; None where all are."""
    draws = training.sampled_negatives
    if draws is None or draws >= config.n_items:
        return None
    return NegativeSampler(np.bincount(windows.events, minlength=config.n_items + 1), draws)


class _Run:
    """One training: everything that changes while it goes on."""

    def __init__(
        self,
        config: ModelConfig,
        training: TrainingConfig,
        windows: TrainingWindows,
        validation: Holdout,
        *,
        mask_window: bool,
        device: torch.device,
    ) -> None:
        self.training, self.windows, self.validation = training, windows, validation
        self.mask_window, self.device = mask_window, device
        self.identity = training_identity(
            config, training, windows, validation, mask_window=mask_window
        )
        torch.manual_seed(training.seed)
        weights = torch.Generator().manual_seed(training.seed)
        self.recommender = Recommender(config, weights).to(device)
        self.optimizer = create_optimizer(self.recommender, training)
        self.average = None if training.ema_decay is None else copy.deepcopy(self.recommender)
        """The running average of the weights; None: not asked for."""
        self.sampler = negative_sampler(config, training, windows)
        self.steps_per_epoch = windows.batch_count(training.batch_size)
        self.epoch = 0
        self.step = 0
        """Steps done in this epoch."""
        self.losses: list[float] = []
        """Losses of the steps since the last validation."""
        self.history: list[Validation] = []
        self.best: Validation | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.misses = 0
        """Validations since the best one."""
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.validation_s = 0.0
        """Seconds of the last validation: what is left free at the end of a time budget."""

    def to_the_end(
        self, progress: Callable[[TrainingProgress], None] | None, checkpoint_path: Path | None
    ) -> TrainResult:
        if checkpoint_path is not None and checkpoint_path.exists():
            self.restore(checkpoint_path)
        labels_done, train_s = 0, 0.0
        while self.stop_reason() is None:
            batches = self.windows.epoch(
                self.training.batch_size,
                seed=self.training.seed,
                epoch=self.epoch,
                first_step=self.step,
            )
            for batch in batches:
                started = time.monotonic()
                loss = self.update(batch)
                train_s += time.monotonic() - started
                labels_done += batch.labels.size
                if progress is not None:
                    progress(self.progress_now(loss, labels_done / train_s))
                if self.validation_due():
                    self.validate(checkpoint_path)
                if self.stop_reason() is not None:
                    break
            else:
                self.epoch, self.step = self.epoch + 1, 0
        reason = self.stop_reason()
        if self.losses or self.best is None:
            self.validate(checkpoint_path)
        assert reason is not None
        assert self.best is not None
        self.recommender.load_state_dict(self.best_weights)
        return TrainResult(
            recommender=self.recommender.eval(),
            metrics=self.best.metrics,
            best_epoch=self.best.epoch,
            history=tuple(self.history),
            epochs=self.epoch + self.step / self.steps_per_epoch,
            seconds=self.seconds(),
            stopped_by=reason,
        )

    def update(self, batch: PackedBatch) -> float:
        """Take one step and return its loss."""
        self.recommender.train()
        loss = batch_loss(self.recommender, batch, self.draw_negatives())
        self.optimizer.zero_grad()
        loss.backward()  # type: ignore[no-untyped-call]  # torch leaves it untyped
        torch.nn.utils.clip_grad_norm_(self.recommender.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self.step += 1
        value = loss.item()
        if not math.isfinite(value):
            msg = f"the loss is {value} in epoch {self.epoch + 1}, step {self.step}"
            raise TrainingDiverged(msg)
        self.losses.append(value)
        if self.average is not None and self.training.ema_decay is not None:
            add_to_average(
                self.average,
                self.recommender,
                decay=self.training.ema_decay,
                steps=self.steps_done(),
            )
        return value

    def draw_negatives(self) -> Negatives | None:
        """Draw this step's sample, by the seed, the epoch and the step alone."""
        if self.sampler is None:
            return None
        seed = np.random.SeedSequence(self.training.seed, spawn_key=(self.epoch, self.step))
        return self.sampler.draw(np.random.default_rng(seed))

    def validation_due(self) -> bool:
        every = self.training.validate_every_steps
        return self.steps_done() % (every or self.steps_per_epoch) == 0

    def validate(self, checkpoint_path: Path | None) -> None:
        """Measure, remember the weights if they are the best so far, and write the checkpoint."""
        started = time.monotonic()
        measured = self.recommender if self.average is None else self.average
        metrics = evaluate(measured, self.validation, mask_window=self.mask_window)
        self.validation_s = time.monotonic() - started
        made = Validation(
            epoch=self.epoch + 1,
            step=self.steps_done(),
            loss=math.fsum(self.losses) / max(1, len(self.losses)),
            metrics=metrics,
            seconds=self.seconds(),
        )
        self.losses = []
        self.history.append(made)
        if self.best is None or metrics[SELECTION_METRIC] > self.best.metrics[SELECTION_METRIC]:
            self.best, self.misses = made, 0
            state = measured.state_dict()
            self.best_weights = {name: tensor.clone() for name, tensor in state.items()}
        else:
            self.misses += 1
        if checkpoint_path is not None:
            self.save(checkpoint_path)

    def stop_reason(self) -> StopReason | None:
        if self.epoch >= self.training.max_epochs:
            return "epochs"
        if self.misses >= self.training.patience:
            return "patience"
        budget_s = self.training.time_budget_s
        # With losses at hand a last validation is still to come: time for it is kept.
        reserved_s = self.validation_s if self.losses else 0.0
        if budget_s is not None and self.seconds() + reserved_s >= budget_s:
            return "time"
        return None

    def steps_done(self) -> int:
        return self.epoch * self.steps_per_epoch + self.step

    def seconds(self) -> float:
        return self.seconds_before + time.monotonic() - self.started

    def progress_now(self, loss: float, samples_per_s: float) -> TrainingProgress:
        return TrainingProgress(
            epoch=self.epoch + 1,
            epochs=self.training.max_epochs,
            step=self.step,
            steps=self.steps_per_epoch,
            loss=loss,
            samples_per_s=samples_per_s,
            best_recall=None if self.best is None else self.best.metrics[SELECTION_METRIC],
        )

    def save(self, path: Path) -> None:
        on_gpu = self.device.type == "cuda"
        write_training_checkpoint(
            path,
            self.identity,
            {
                "recommender": self.recommender.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "best_weights": self.best_weights,
                "optimizer": self.optimizer.state_dict(),
                "random_state": torch.get_rng_state(),
                "device_random_state": torch.cuda.get_rng_state(self.device) if on_gpu else None,
                "epoch": self.epoch,
                "step": self.step,
                "misses": self.misses,
                "history": [asdict(made) for made in self.history],
                "seconds": self.seconds(),
            },
        )

    def restore(self, path: Path) -> None:
        content = read_training_checkpoint(path, self.identity, self.device)
        self.recommender.load_state_dict(content["recommender"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.best_weights = content["best_weights"]
        self.optimizer.load_state_dict(content["optimizer"])
        torch.set_rng_state(content["random_state"].cpu())
        if content["device_random_state"] is not None:
            torch.cuda.set_rng_state(content["device_random_state"].cpu(), self.device)
        self.epoch, self.step = content["epoch"], content["step"]
        self.history = [Validation(**made) for made in content["history"]]
        self.misses = content["misses"]
        self.best = self.history[-1 - self.misses]
        self.seconds_before = content["seconds"]
