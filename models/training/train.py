"""Training of a Recommender: next item by cross-entropy, best weights by validation.

AdamW, gradients clipped by their common norm, early stopping by validation Recall@10, as in the
LRURec authors' code (Yue et al., WSDM 2024, arXiv 2310.02367). On request, what is validated and
kept is the running average of the weights (`averaging`), labels are scored against a sample of the
items instead of all (`sampled_loss`), and several processes share the work (`models.processes`).
Prints nothing; progress leaves through a callback.
"""

from collections.abc import Callable, Sequence
from pathlib import Path

import numpy.typing as npt
import torch

from models.config import ModelConfig, TrainingConfig
from models.evaluation import Holdout
from models.packing import TrainingWindows
from models.processes import Processes
from models.training.allocator import freed_memory_kept
from models.training.result import TrainingProgress, TrainResult
from models.training.run import TrainingRun


def train(
    config: ModelConfig,
    training: TrainingConfig,
    sequences: Sequence[npt.ArrayLike],
    validation: Holdout,
    *,
    mask_window: bool = True,
    progress: Callable[[TrainingProgress], None] | None = None,
    checkpoint_path: Path | None = None,
    processes: Processes | None = None,
    device: torch.device | str = "cpu",
) -> TrainResult:
    """Train a recommender from the start, or from where an interrupted call left off.

    The result depends on the arguments and the machine's arithmetic alone, interrupted or not; a
    time budget makes it depend on the machine's speed too. torch's global random state is left as
    it was.

    Several processes that call this with the same arguments (but `progress` and `device`) come to
    the same weights, which are those of one process up to rounding and to dropout's draws.

    Args:
        config: sizes of the model.
        training: how to train.
        sequences: training items of each user, indices from 1 to n_items, oldest first.
        validation: users and targets by which the best weights are chosen; at least one.
        mask_window: whether validation masks the items that the model sees.
        progress: called after every step. An exception from it ends the training; with a checkpoint
            the next call goes on from the last validation.
        checkpoint_path: written at every validation; read at the start if it exists; by the first
            process.
        processes: those that share every batch and the validation; None: this one does it alone.
        device: where to train.

    Returns:
        The best weights, on `device`.

    Raises:
        ValueError: there is no item to train on or no user to validate, or an index is too big.
        ResumeMismatch: the checkpoint is of other settings or data.
        TrainingDiverged: the loss is not finite.
        ProcessLost: another process is gone.
        ProcessesDisagree: another process has other arguments.
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
        run = TrainingRun(
            config,
            training,
            windows,
            validation,
            mask_window=mask_window,
            checkpoint_path=checkpoint_path,
            processes=processes or Processes(),
            device=device,
        )
        return run.to_the_end(progress)
