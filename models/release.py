"""Releases: a trained model as a folder that is either whole or refused.

A release holds `weights.safetensors`, `vocabulary.json` and `manifest.json` (`models.manifest`).
Nothing is read as weights or vocabulary before its digest is right, and file names are fixed here,
never taken from the manifest.
"""

import math
import os
import shutil
import uuid
from collections.abc import Mapping
from dataclasses import dataclass, replace
from datetime import UTC, datetime
from pathlib import Path
from typing import Any

import msgspec
import safetensors
import safetensors.torch
import torch

from models.config import ModelConfig
from models.errors import ReleaseError, ReleaseIncompatible
from models.magnitudes import LARGEST, largest_number
from models.manifest import (
    MANIFEST_FILE,
    MAX_VERSION,
    VOCABULARY_FILE,
    WEIGHTS_FILE,
    Manifest,
    decode_manifest,
    encode_manifest,
    sha256,
)
from models.recommender import Recommender
from models.release_files import check_file, read_file
from models.serving.model import ServingModel
from models.serving.native import NativeServing
from models.vocabulary import Vocabulary

MAX_MANIFEST_BYTES = 2**24
"""Some 40,000 validations in its history."""
MAX_VOCABULARY_BYTES = 2**31
"""40 million ids of 36 characters."""
MAX_WEIGHTS_BYTES = 2**35
"""128 million items of width 64: a minute to read, in which a worker hears of no other release."""
MAX_WEIGHTS_HEADER_BYTES = 2**24
"""Names and places of 100,000 weights; the largest model that is allowed has 15,000."""


@dataclass(frozen=True, kw_only=True)
class Release:
    """A release whose every digest was right when it was read."""

    path: Path
    version: int
    created: str
    """ISO 8601, UTC."""
    weights_id: int
    """In 1..2**63-1; the same for the same weights, vocabulary and config, and only for those."""
    config: ModelConfig
    vocabulary: Vocabulary
    metrics: Mapping[str, Any]
    training: Mapping[str, Any]
    files: Mapping[str, str]
    """SHA-256 of weights and vocabulary, in hexadecimal, by file name."""
    manifest_sha256: str
    """Of the manifest's bytes: whoever knows it knows the whole release."""


class _VocabularyFile(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    item_ids: list[str]
    counts: list[int]


def write_release(
    directory: Path,
    *,
    version: int,
    recommender: Recommender,
    vocabulary: Vocabulary,
    metrics: Mapping[str, Any],
    training: Mapping[str, Any],
) -> Release:
    """Write the folder `directory/<version>`: it appears whole and durable, or not at all.

    A writer that is killed leaves a folder whose name begins with a dot; nobody reads it.

    Args:
        directory: holds one folder per release; made if it is missing.
        version: from 1 to 2**31 - 1, not there yet.
        recommender: the model.
        vocabulary: its items.
        metrics: how good it is; whatever JSON can hold.
        training: what it was made from and how; whatever JSON can hold.

    Returns:
        The release, read back.

    Raises:
        ReleaseError: the folder is there already, or cannot be written; nothing there was changed.
        ValueError: the version is out of range, the vocabulary has not as many items as the model,
            or a weight or metric is not finite.
    """
    target = directory / str(version)
    contents = _encode(version, recommender, vocabulary, metrics, training)
    temporary = directory / f".{version}-{uuid.uuid4().hex}"
    try:
        temporary.mkdir(parents=True)
        for name, content in contents.items():
            with (temporary / name).open("xb") as file:
                file.write(content)
                file.flush()
                os.fsync(file.fileno())
        _fsync_directory(temporary)
        if target.exists():  # rename would replace an empty folder
            msg = f"release {target}: expected a version that is not there yet, got {version}"
            raise ReleaseError(msg)
        temporary.rename(target)
        _fsync_directory(directory)
    except OSError as exc:
        msg = f"release {target} cannot be written: {exc}"
        raise ReleaseError(msg) from exc
    finally:
        shutil.rmtree(temporary, ignore_errors=True)
    return read_release(target)


def _encode(
    version: int,
    recommender: Recommender,
    vocabulary: Vocabulary,
    metrics: Mapping[str, Any],
    training: Mapping[str, Any],
) -> dict[str, bytes]:
    """Return every file's bytes by name, the manifest's last."""
    config = recommender.config
    if not 1 <= version <= MAX_VERSION:
        msg = f"version must be from 1 to {MAX_VERSION}, got {version}"
        raise ValueError(msg)
    if vocabulary.n_items != config.n_items:
        msg = f"the model has {config.n_items} items, got a vocabulary of {vocabulary.n_items}"
        raise ValueError(msg)
    weights = {
        name: tensor.detach().to("cpu", torch.float32).contiguous()
        for name, tensor in recommender.state_dict().items()
    }
    for name, tensor in weights.items():
        if not tensor.isfinite().all():
            msg = f"weights must be finite, got {name} with NaN or infinity"
            raise ValueError(msg)
    items = _VocabularyFile(
        item_ids=list(vocabulary.item_ids), counts=vocabulary.counts[1:].tolist()
    )
    contents = {
        WEIGHTS_FILE: safetensors.torch.save(weights),
        VOCABULARY_FILE: msgspec.json.encode(items),
    }
    contents[MANIFEST_FILE] = encode_manifest(
        version=version,
        created=datetime.now(UTC).isoformat(timespec="milliseconds"),
        model=config,
        files={name: sha256(content) for name, content in contents.items()},
        metrics=metrics,
        training=training,
    )
    return contents


def read_manifest(path: Path) -> Manifest:
    """Read the manifest of the release folder `path`; weights and vocabulary are not looked at.

    Raises:
        ReleaseCorrupt: the manifest is missing or not as it was written.
        ReleaseIncompatible: its format is not the one of this software.
    """
    return decode_manifest(
        path / MANIFEST_FILE, read_file(path / MANIFEST_FILE, MAX_MANIFEST_BYTES)
    )


def read_release(path: Path, *, expected_manifest_sha256: str | None = None) -> Release:
    """Read the release folder `path` and verify every file's digest.

    Args:
        path: the release's own folder.
        expected_manifest_sha256: what its announcement says; None: take the manifest as it is.

    Raises:
        ReleaseCorrupt: a file is missing or not as it was written.
        ReleaseIncompatible: its format is not the one of this software.
    """
    content = read_file(path / MANIFEST_FILE, MAX_MANIFEST_BYTES, expected_manifest_sha256)
    manifest = decode_manifest(path / MANIFEST_FILE, content)
    files, most_weight_bytes = manifest.files, _most_weight_bytes(_weight_shapes(manifest.model))
    check_file(path / WEIGHTS_FILE, most_weight_bytes, files[WEIGHTS_FILE])
    vocabulary_path = path / VOCABULARY_FILE
    # Twice, so that a large file which is not the one that was written takes no memory.
    check_file(vocabulary_path, MAX_VOCABULARY_BYTES, files[VOCABULARY_FILE])
    vocabulary = _decode_vocabulary(
        vocabulary_path,
        read_file(vocabulary_path, MAX_VOCABULARY_BYTES, files[VOCABULARY_FILE]),
    )
    n_items = manifest.model.n_items
    if vocabulary.n_items != n_items:
        msg = f"{vocabulary_path}: expected {n_items} items, got {vocabulary.n_items}"
        raise ReleaseIncompatible(msg)
    return Release(
        path=path,
        version=manifest.version,
        created=manifest.created,
        weights_id=manifest.weights_id(),
        config=manifest.model,
        vocabulary=vocabulary,
        metrics=manifest.metrics,
        training=manifest.training,
        files=manifest.files,
        manifest_sha256=sha256(content),
    )


def load_recommender(release: Release) -> Recommender:
    """Load the model on the CPU, in evaluation mode; its bytes are verified once more.

    Raises:
        ReleaseCorrupt: the weights are missing or not as they were written.
        ReleaseIncompatible: they are not those of a model of the release's config, or scores by
            them need not be finite.
    """
    path = release.path / WEIGHTS_FILE
    shapes = _weight_shapes(release.config)
    content = read_file(path, _most_weight_bytes(shapes), release.files[WEIGHTS_FILE])
    try:
        weights = safetensors.torch.load(content)
    except (safetensors.SafetensorError, KeyError, ValueError, RuntimeError) as exc:
        # The last three of what safetensors knows and PyTorch does not: numbers of four bits, say.
        msg = f"{path}: expected a safetensors file, got: {exc!r}"
        raise ReleaseIncompatible(msg) from exc
    expected = {name: f"float32 {shape}" for name, shape in shapes.items()}
    got = {name: _describe(tensor) for name, tensor in weights.items()}
    for name in sorted(expected.keys() | got.keys()):
        if expected.get(name) != got.get(name):
            msg = f"{path}: {name}: expected {expected.get(name)}, got {got.get(name)}"
            raise ReleaseIncompatible(msg)
    with torch.device("meta"):
        recommender = Recommender(release.config)
    recommender.load_state_dict(weights, assign=True)
    largest = largest_number(recommender)
    if not largest <= LARGEST:
        msg = (
            f"{path}: expected weights that give finite scores for every history, with no number "
            f"above {LARGEST:g} on the way, got {largest:g}"
        )
        raise ReleaseIncompatible(msg)
    return recommender.eval()


def load_serving(
    release: Release,
    device: torch.device | str = "cpu",
    native: NativeServing | None = None,
) -> ServingModel:
    """Load the model as it serves, on the given device; errors as in `load_recommender`."""
    return ServingModel(load_recommender(release), device, native)


def _weight_shapes(config: ModelConfig) -> dict[str, tuple[int, ...]]:
    """Return the shape of every weight by name.

    One block is built, and none but on paper: how many a manifest claims is not believed before
    the weights have them.
    """
    with torch.device("meta"):
        sample = Recommender(replace(config, n_blocks=1))
    shapes: dict[str, tuple[int, ...]] = {}
    for name, tensor in sample.state_dict().items():
        _, is_of_block, rest = name.partition("blocks.0.")
        names = [f"blocks.{i}.{rest}" for i in range(config.n_blocks)] if is_of_block else [name]
        shapes |= dict.fromkeys(names, tuple(tensor.shape))
    return shapes


def _most_weight_bytes(shapes: Mapping[str, tuple[int, ...]]) -> int:
    """Return how large a file of float32 of these shapes may be."""
    numbers = 4 * sum(map(math.prod, shapes.values()))
    return min(numbers + MAX_WEIGHTS_HEADER_BYTES, MAX_WEIGHTS_BYTES)


def _decode_vocabulary(path: Path, content: bytes) -> Vocabulary:
    try:
        items = msgspec.json.decode(content, type=_VocabularyFile)
        return Vocabulary(items.item_ids, items.counts)
    except (msgspec.DecodeError, ValueError) as exc:
        msg = f"{path}: expected item ids and counts, got: {exc}"
        raise ReleaseIncompatible(msg) from exc


def _describe(tensor: torch.Tensor) -> str:
    return f"{str(tensor.dtype).removeprefix('torch.')} {tuple(tensor.shape)}"


def _fsync_directory(path: Path) -> None:
    descriptor = os.open(path, os.O_RDONLY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
