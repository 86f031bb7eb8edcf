"""The file an interrupted training goes on from: one torch archive, replaced as a whole.

It holds tensors and plain values only and is read with `weights_only`, which runs no code from it.
"""

import os
import uuid
from collections.abc import Mapping
from contextlib import suppress
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import torch
import xxhash

from models.config import ModelConfig, TrainingConfig
from models.errors import ModelError
from models.evaluation import Holdout
from models.packing import TrainingWindows, concatenate

FORMAT_VERSION = 3
_SETTINGS = {"mask_window": "recommend.exclude_seen"}
"""Parts of an identity that are set by another name."""
_OF_THE_DATA = {"data", "model.n_items"}
"""Parts of an identity that follow from the interactions."""


class ResumeMismatch(ModelError):
    """A training checkpoint cannot be read, or was made with other settings or data.

    Operator action: remove the file to train from the start, or restore what it was made with.
    """


class CheckpointUnwritable(ModelError):
    """A training checkpoint cannot be written; the one before it, if any, is still whole.

    Operator action: make room on the disk, then train again with `--resume`.
    """


def training_identity(
    config: ModelConfig,
    training: TrainingConfig,
    windows: TrainingWindows,
    validation: Holdout,
    *,
    mask_window: bool,
) -> dict[str, Any]:
    """Collect what has to be the same for a training to go on from a checkpoint.

    How long to train is not part of it: epochs, patience and time may be changed on the way.
    """
    lasting = asdict(replace(training, max_epochs=1, patience=1, time_budget_s=None))
    digest = xxhash.xxh3_128()
    for array in (
        windows.events,
        windows.starts,
        windows.counts,
        *concatenate(validation.histories),
        validation.targets,
    ):
        digest.update(array.tobytes())
    return {
        "format_version": FORMAT_VERSION,
        "model": asdict(config),
        "training": lasting,
        "mask_window": mask_window,
        "data": digest.hexdigest(),
    }


def write_training_checkpoint(
    path: Path, identity: dict[str, Any], content: dict[str, Any]
) -> None:
    """Replace the file at `path`: after a crash it holds the old checkpoint or the new one.

    Raises:
        CheckpointUnwritable: the operating system refuses; the old checkpoint stays.
    """
    # Of this writing alone: another training that was told the same file writes one of its own.
    temporary = path.with_name(f"{path.name}.{uuid.uuid4().hex[:8]}.tmp")
    try:
        with temporary.open("wb") as file:
            torch.save({"identity": identity, **content}, file)
            file.flush()
            os.fsync(file.fileno())
        temporary.replace(path)
    except (OSError, RuntimeError) as error:  # torch turns what the system says into the latter
        with suppress(OSError):  # a file system that was made read-only refuses this too
            temporary.unlink(missing_ok=True)
        cause = error.__context__ if isinstance(error.__context__, OSError) else error
        msg = f"{path}: the training checkpoint cannot be written: {cause}"
        raise CheckpointUnwritable(msg) from error


def read_training_checkpoint(path: Path, identity: dict[str, Any]) -> dict[str, Any]:
    """Read the content of a checkpoint of this very training, tensors on the CPU.

    Raises:
        ResumeMismatch: the file is no checkpoint, or one of another training.
    """
    try:
        content: dict[str, Any] = torch.load(path, map_location="cpu", weights_only=True)
        found = dict(content.pop("identity"))
    except Exception as error:  # torch raises nearly anything for a file that it cannot read
        msg = f"{path} is no training checkpoint: {error}"
        raise ResumeMismatch(msg) from error
    if found != identity:
        msg = f"{path} is of another training: {_first_difference(identity, found)}"
        raise ResumeMismatch(msg)
    return content


def _first_difference(expected: Mapping[str, Any], found: Mapping[str, Any]) -> str:
    here, there = _by_setting(expected), _by_setting(found)
    key = next(key for key in {**here, **there} if here.get(key) != there.get(key))
    if key in _OF_THE_DATA:
        return "it learned from other interactions"
    return f"{_SETTINGS.get(key, key)}: expected {here.get(key)}, got {there.get(key)}"


def _by_setting(identity: Mapping[str, Any]) -> dict[str, Any]:
    """Return the parts of an identity by `model.hidden_size` and the like, one value each."""
    parts: dict[str, Any] = {}
    for key, value in identity.items():
        inner = value.items() if isinstance(value, dict) else ()
        parts |= {f"{key}.{name}": one for name, one in inner} or {key: value}
    return parts
