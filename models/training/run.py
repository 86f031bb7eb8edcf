"""One training while it goes on: its steps, validations and checkpoints, and when it ends."""

import copy
import math
import time
from collections.abc import Callable
from dataclasses import asdict
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor

from models.config import ModelConfig, TrainingConfig
from models.evaluation import Holdout, evaluate
from models.packing import Indices, TrainingWindows
from models.processes import Processes
from models.recommender import Recommender
from models.training.averaging import add_to_average
from models.training.checkpoint import (
    read_training_checkpoint,
    training_identity,
    write_training_checkpoint,
)
from models.training.result import (
    SELECTION_METRIC,
    StopReason,
    TrainingDiverged,
    TrainingProgress,
    TrainResult,
    Validation,
)
from models.training.sampled_loss import Negatives
from models.training.step import create_optimizer, negative_sampler, take_gradient

STEPS_UNREAD = {"cpu": 1, "cuda": 16}
"""Steps after which their losses are read, by device: to read one is to wait for the GPU."""


class TrainingRun:
    """Everything that changes while a training goes on.

    Every process of a training has one, with the same weights at all times: they start from the
    same seed and take the same steps. What depends on the clock, the first process decides.

    Args:
        config: sizes of the model.
        training: how to train.
        windows: what to train on; at least one window.
        validation: users and targets by which the best weights are chosen.
        mask_window: whether validation masks the items that the model sees.
        checkpoint_path: written by the first process at every validation; None: never.
        processes: those that share the work.
        device: where this one trains.
    """

    def __init__(
        self,
        config: ModelConfig,
        training: TrainingConfig,
        windows: TrainingWindows,
        validation: Holdout,
        *,
        mask_window: bool,
        checkpoint_path: Path | None,
        processes: Processes,
        device: torch.device,
    ) -> None:
        self.training, self.windows, self.validation = training, windows, validation
        self.mask_window, self.device, self.processes = mask_window, device, processes
        self.checkpoint_path = checkpoint_path
        self.identity = training_identity(
            config, training, windows, validation, mask_window=mask_window
        )
        torch.manual_seed(training.seed + processes.rank)  # of dropout: none drops as another does
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
        """Losses of the steps since the last validation, as far as they are read."""
        self.unread: list[Tensor] = []
        """Those behind them, which the device may still be at."""
        self.history: list[Validation] = []
        self.best: Validation | None = None
        self.best_weights: dict[str, Tensor] = {}
        self.misses = 0
        """Validations since the best one."""
        self.seconds_before = 0.0
        self.started = time.monotonic()
        self.validation_s = 0.0
        """Seconds of the last validation: what is left free at the end of a time budget."""

    def to_the_end(self, progress: Callable[[TrainingProgress], None] | None) -> TrainResult:
        """Go on from the checkpoint, if there is one, until the training is over."""
        self.agree()
        self.restore()
        labels_done, train_s = 0, 0.0
        reason = self.stop_reason()
        while reason is None:
            batches = self.windows.epoch(
                self.training.batch_size,
                seed=self.training.seed,
                epoch=self.epoch,
                first_step=self.step,
            )
            for chosen in batches:
                started = time.monotonic()
                self.update(chosen)
                train_s += time.monotonic() - started
                labels_done += int(self.windows.counts[chosen].sum())
                if progress is not None:
                    progress(self.progress_now(labels_done / train_s))
                if self.validation_due():
                    self.validate()
                if (reason := self.stop_reason()) is not None:
                    break
            else:
                self.epoch, self.step = self.epoch + 1, 0
                reason = self.stop_reason()
        if self.losses or self.unread or self.best is None:
            self.validate()
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

    def update(self, chosen: Indices) -> None:
        """Take one step, by the windows of one batch."""
        self.recommender.train()
        self.optimizer.zero_grad()
        loss = take_gradient(
            self.recommender,
            self.windows,
            chosen,
            self.draw_negatives(),
            self.processes,
            self.training.precision,
        )
        torch.nn.utils.clip_grad_norm_(self.recommender.parameters(), self.training.clip_norm)
        self.optimizer.step()
        self.step += 1
        self.unread.append(loss)
        if not self.losses or len(self.unread) >= STEPS_UNREAD[self.device.type]:
            self.read_losses()
        if self.average is not None and self.training.ema_decay is not None:
            add_to_average(
                self.average,
                self.recommender,
                decay=self.training.ema_decay,
                steps=self.steps_done(),
            )

    def read_losses(self) -> None:
        """Wait for the losses that are not read yet.

        Raises:
            TrainingDiverged: one is not finite.
        """
        if not self.unread:
            return
        values: list[float] = torch.stack(self.unread).tolist()
        first = self.steps_done() - len(values)
        for steps_before, value in enumerate(values, first):
            if not math.isfinite(value):
                epoch, step = divmod(steps_before, self.steps_per_epoch)
                msg = f"the loss is {value} in epoch {epoch + 1}, step {step + 1}"
                raise TrainingDiverged(msg)
        self.losses += values
        self.unread = []

    def draw_negatives(self) -> Negatives | None:
        """Draw this step's sample, by the seed, the epoch and the step alone."""
        if self.sampler is None:
            return None
        seed = np.random.SeedSequence(self.training.seed, spawn_key=(self.epoch, self.step))
        return self.sampler.draw(np.random.default_rng(seed))

    def validation_due(self) -> bool:
        """Tell whether the step that was just taken is to be followed by a validation."""
        every = self.training.validate_every_steps
        return self.steps_done() % (every or self.steps_per_epoch) == 0

    def validate(self) -> None:
        """Measure, remember the weights if they are the best so far, and write the checkpoint."""
        self.read_losses()
        started = time.monotonic()
        measured = self.recommender if self.average is None else self.average
        metrics = evaluate(
            measured, self.validation, mask_window=self.mask_window, processes=self.processes
        )
        self.validation_s = time.monotonic() - started
        made = Validation(
            epoch=max(1, math.ceil(self.steps_done() / self.steps_per_epoch)),
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
        if self.checkpoint_path is not None:
            self.save(self.checkpoint_path)

    def stop_reason(self) -> StopReason | None:
        """Return why the training is over, the same in all processes; None: it is not."""
        if self.epoch >= self.training.max_epochs:
            return "epochs"
        if self.misses >= self.training.patience:
            return "patience"
        budget_s = self.training.time_budget_s
        if budget_s is None:
            return None
        # With losses at hand a last validation is still to come: time for it is kept.
        reserved_s = self.validation_s if self.losses or self.unread else 0.0
        up = self.processes.from_first(self.seconds() + reserved_s >= budget_s)
        return "time" if up else None

    def steps_done(self) -> int:
        """Count the steps since the start of the training."""
        return self.epoch * self.steps_per_epoch + self.step

    def seconds(self) -> float:
        """Count the seconds since the start of the training, interruptions left out."""
        return self.seconds_before + time.monotonic() - self.started

    def progress_now(self, samples_per_s: float) -> TrainingProgress:
        """Say where the training stands."""
        return TrainingProgress(
            epoch=self.epoch + 1,
            epochs=self.training.max_epochs,
            step=self.step,
            steps=self.steps_per_epoch,
            loss=self.losses[-1],
            samples_per_s=samples_per_s,
            best_recall=None if self.best is None else self.best.metrics[SELECTION_METRIC],
        )

    def agree(self) -> None:
        """Make sure that all processes train the same model on the same data.

        Raises:
            ProcessesDisagree: they do not.
        """
        training = self.training
        self.processes.require_same(
            self.identity
            | {
                "max_epochs": training.max_epochs,
                "patience": training.patience,
                "time_budget_s": training.time_budget_s,
                "checkpoint": self.checkpoint_path is not None,
            }
        )

    def save(self, path: Path) -> None:
        """Have the first process write the checkpoint."""
        on_gpu = self.device.type == "cuda"
        random_states = self.processes.from_all(
            {
                "cpu": torch.get_rng_state(),
                "device": torch.cuda.get_rng_state(self.device) if on_gpu else None,
            }
        )
        if not self.processes.first:
            return
        write_training_checkpoint(
            path,
            self.identity,
            {
                "recommender": self.recommender.state_dict(),
                "average": None if self.average is None else self.average.state_dict(),
                "best_weights": self.best_weights,
                "optimizer": self.optimizer.state_dict(),
                "random_states": random_states,
                "epoch": self.epoch,
                "step": self.step,
                "misses": self.misses,
                "history": [asdict(made) for made in self.history],
                "seconds": self.seconds(),
            },
        )

    def restore(self) -> None:
        """Take over what the checkpoint holds, if there is one; the first process reads it."""
        content: dict[str, Any] | None = None
        path = self.checkpoint_path
        if self.processes.first and path is not None and path.exists():
            content = read_training_checkpoint(path, self.identity)
        content = self.processes.from_first(content)
        if content is None:
            return
        self.recommender.load_state_dict(content["recommender"])
        if self.average is not None:
            self.average.load_state_dict(content["average"])
        self.best_weights = content["best_weights"]
        self.optimizer.load_state_dict(content["optimizer"])
        if self.processes.rank < len(content["random_states"]):  # else there are more than before
            states = content["random_states"][self.processes.rank]
            torch.set_rng_state(states["cpu"])
            if states["device"] is not None and self.device.type == "cuda":
                torch.cuda.set_rng_state(states["device"], self.device)
        self.epoch, self.step = content["epoch"], content["step"]
        self.history = [Validation(**made) for made in content["history"]]
        self.misses = content["misses"]
        self.best = self.history[-1 - self.misses]
        self.seconds_before = content["seconds"]
