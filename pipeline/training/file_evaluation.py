"""The published evaluation on a data file: leave-one-out, full ranking, the window's items masked.

Every user's last item tests, the one before it validates, the rest trains; users with fewer than
three items only train (Yue et al., WSDM 2024, arXiv 2310.02367, section 4.1; `models.evaluation`).
"""

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path

import numpy as np
import numpy.typing as npt
import torch

from models.config import ModelConfig
from models.evaluation import Holdout, Split, evaluate, leave_one_out
from models.packing import Indices
from models.popularity import evaluate_popularity, item_counts
from models.processes import Processes
from models.release import Release
from models.training.result import TrainingProgress, TrainResult
from models.training.train import train
from models.vocabulary import Vocabulary
from pipeline.errors import NotEnoughEvents
from pipeline.files.interactions import read_interactions, require_event_types
from pipeline.files.rows import Interactions
from pipeline.settings import Settings
from pipeline.training.gate import evaluate_release
from pipeline.training.processes import training_device
from pipeline.training.scan_form import fastest_scan

MASK_WINDOW = True
"""As the protocol has it, whatever workers do with seen items."""

BySplit = Mapping[str, Mapping[str, Mapping[str, float]]]


@dataclass(frozen=True, kw_only=True)
class FileEvaluation:
    """What an evaluation says.

    Attributes:
        metrics: By split (validation, test) and method (model, popularity).
        config: Sizes of the model.
        data: Counts of events, users, items and users that are ranked for.
        result: How the training went; None where a release was evaluated.
    """

    metrics: BySplit
    config: ModelConfig
    data: Mapping[str, int]
    result: TrainResult | None


def evaluate_file(
    settings: Settings,
    path: Path,
    release: Release | None = None,
    progress: Callable[[TrainingProgress], None] | None = None,
    checkpoint_path: Path | None = None,
    processes: Processes | None = None,
) -> FileEvaluation:
    """Train on a file and rank, or rank by a release that is there.

    Args:
        settings: Model, training, which event types count, device and threads of the trainer.
        path: The data file.
        release: What to rank by, with the items that it knows; None: train.
        progress: Called after every step of a training.
        checkpoint_path: Written at every validation; a training that it is of goes on from it.
        processes: Those that train and rank together, and all call this; None: this one.

    Raises:
        DataFileInvalid: The file is not what it should be.
        NotEnoughEvents: It has fewer than two items, or no user with three.
        models.errors.ModelError: The training diverged, or the release is damaged.
    """
    vocabulary, sequences = _read_sequences(settings, path)
    split = leave_one_out(sequences)
    if vocabulary.n_items < 2 or not split.validation.histories:
        msg = (
            f"{path}: expected 2 items and a user with at least 3 events, got "
            f"{vocabulary.n_items} items and users with at most {max(map(len, sequences))}"
        )
        raise NotEnoughEvents(msg)
    device = training_device(settings.trainer)
    if settings.trainer.threads is not None:
        torch.set_num_threads(settings.trainer.threads)
    if release is None:
        config = settings.model.config(vocabulary.n_items)
        with fastest_scan(settings.trainer):
            result = train(
                config,
                settings.training,
                split.train,
                split.validation,
                mask_window=MASK_WINDOW,
                progress=progress,
                checkpoint_path=checkpoint_path,
                processes=processes,
                device=device,
            )
        validation = result.metrics
        test = evaluate(
            result.recommender, split.test, mask_window=MASK_WINDOW, processes=processes
        )
    else:
        config, result = release.config, None
        validation, test = (
            evaluate_release(release, vocabulary, holdout, mask_window=MASK_WINDOW, device=device)
            for holdout in (split.validation, split.test)
        )
    return FileEvaluation(
        metrics={
            "validation": {
                "model": validation,
                "popularity": _popularity(split, split.validation, vocabulary, config),
            },
            "test": {
                "model": test,
                "popularity": _popularity(split, split.test, vocabulary, config),
            },
        },
        config=config,
        data={
            "events": int(vocabulary.counts.sum()),
            "users": len(sequences),
            "items": vocabulary.n_items,
            "ranked_users": len(split.test.histories),
            "items_unknown_to_release": _unknown(vocabulary, release),
        },
        result=result,
    )


def _read_sequences(settings: Settings, path: Path) -> tuple[Vocabulary, list[Indices]]:
    """Return a file's items, in its order, and each user's sequence, users in its order."""
    rows = read_interactions(path)
    require_event_types(path, rows, settings.fields.accepted_event_types)
    counted = _counted(settings, rows)
    users, items = rows.users[counted], rows.items[counted].astype(np.int64)
    if not len(items):
        msg = f"{path}: expected events that count (fields.accepted_event_types), got none"
        raise NotEnoughEvents(msg)
    counts = np.bincount(items, minlength=len(rows.item_ids))
    kept = np.flatnonzero(counts)
    index_of = np.zeros(len(counts), np.int64)
    index_of[kept] = np.arange(1, len(kept) + 1)
    vocabulary = Vocabulary([rows.item_ids[item] for item in kept.tolist()], counts[kept])
    order = np.argsort(users, kind="stable")
    ends = np.flatnonzero(np.diff(users[order])) + 1
    return vocabulary, np.split(index_of[items[order]], ends)


def _counted(settings: Settings, rows: Interactions) -> npt.NDArray[np.bool_]:
    """Tell which rows' event types count: bool (n,)."""
    accepted = settings.fields.accepted_event_types
    if not accepted or rows.types is None:
        return np.ones(len(rows), np.bool_)
    return np.isin(rows.types, [i for i, kind in enumerate(rows.event_types) if kind in accepted])


def _popularity(
    split: Split, holdout: Holdout, vocabulary: Vocabulary, config: ModelConfig
) -> dict[str, float]:
    return evaluate_popularity(
        item_counts(split.train, vocabulary.n_items),
        holdout,
        max_length=config.max_length,
        mask_window=MASK_WINDOW,
    )


def _unknown(vocabulary: Vocabulary, release: Release | None) -> int:
    """Count the file's items that the release does not know."""
    if release is None:
        return 0
    return int(np.count_nonzero(release.vocabulary.indices_of_hashes(vocabulary.hashes[1:]) == 0))
