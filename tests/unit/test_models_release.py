"""A release is read as it was written, or refused with the reason."""

import dataclasses
import hashlib
import json
import os
import stat
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import safetensors.torch
import torch

from models.config import ModelConfig
from models.errors import ReleaseCorrupt, ReleaseError, ReleaseIncompatible
from models.recommender import Recommender
from models.release import (
    Release,
    load_recommender,
    load_serving,
    read_manifest,
    read_release,
    write_release,
)
from models.vocabulary import Vocabulary

CONFIG = ModelConfig(n_items=3, hidden_size=4, state_size=5, n_blocks=1, dropout=0.1)
DEEP = b'{"more": ' + b"[" * 5000 + b"]" * 5000 + b"}"
FILES = ["manifest.json", "vocabulary.json", "weights.safetensors"]


def _recommender(seed: int = 0, config: ModelConfig = CONFIG) -> Recommender:
    return Recommender(config, torch.Generator().manual_seed(seed))


def _write(directory: Path, **changes: Any) -> Release:
    parts: dict[str, Any] = {
        "version": 1,
        "recommender": _recommender(),
        "vocabulary": Vocabulary(["a", "ä", 'quote"'], [4, 0, 9]),
        "metrics": {"recall@10": 0.25},
        "training": {"events": 12, "windows": [1, 2]},
    }
    return write_release(directory, **(parts | changes))


@pytest.fixture
def path(tmp_path: Path) -> Path:
    """Folder of a whole release."""
    return _write(tmp_path).path


def _digest(fields: dict[str, Any]) -> str:
    text = json.dumps(fields, sort_keys=True, ensure_ascii=False)
    return hashlib.sha256(text.encode()).hexdigest()


def _change_manifest(path: Path, change: Callable[[dict[str, Any]], object]) -> None:
    """Change the manifest's fields and make its own digest right again."""
    fields = json.loads((path / "manifest.json").read_text())
    del fields["manifest_digest"]
    change(fields)
    fields["manifest_digest"] = _digest(fields)
    (path / "manifest.json").write_text(json.dumps(fields))


def _replace(path: Path, name: str, content: bytes) -> None:
    """Replace a file and make the manifest's digest of it right again."""
    (path / name).write_bytes(content)
    digest = hashlib.sha256(content).hexdigest()
    _change_manifest(path, lambda fields: fields["files"].update({name: digest}))


def test_a_release_is_read_as_it_was_written(tmp_path: Path) -> None:
    """Weights bit by bit, vocabulary, config, metrics and training come back."""
    recommender = _recommender()

    written = _write(tmp_path / "new" / "folder", recommender=recommender, version=7)
    release = read_release(written.path)

    assert release.path == tmp_path / "new" / "folder" / "7"
    assert release.version == 7
    assert release.config == CONFIG
    assert release.vocabulary.item_ids == ("a", "ä", 'quote"')
    assert release.vocabulary.counts.tolist() == [0, 4, 0, 9]
    assert release.metrics == {"recall@10": 0.25}
    assert release.training == {"events": 12, "windows": [1, 2]}
    assert release.created.endswith("+00:00")
    assert release.manifest_sha256 == written.manifest_sha256
    loaded = load_recommender(release)
    assert not loaded.training
    expected = recommender.state_dict()
    assert loaded.state_dict().keys() == expected.keys()
    assert all(torch.equal(expected[name], x) for name, x in loaded.state_dict().items())
    assert all(parameter.requires_grad for parameter in loaded.parameters())
    assert sorted(file.name for file in release.path.iterdir()) == FILES


def test_a_release_serves(path: Path) -> None:
    """The serving model has the release's weights."""
    model = load_serving(read_release(path), "cpu")

    state, outputs = model.advance(model.init_state(1), torch.tensor([1, 2]), torch.tensor([2]))

    expected = _recommender().eval()(torch.tensor([1, 2]), torch.tensor([2])).detach()
    assert torch.allclose(outputs, expected, atol=1e-6)
    assert state.shape == (1, 1, 5)


def test_the_manifest_alone_says_what_a_release_is(path: Path) -> None:
    """Listing releases needs neither weights nor vocabulary."""
    (path / "weights.safetensors").unlink()

    manifest = read_manifest(path)

    assert manifest.version == 1
    assert manifest.model == CONFIG
    assert manifest.metrics == {"recall@10": 0.25}


def test_the_weights_id_names_weights_vocabulary_and_config(tmp_path: Path) -> None:
    """It changes with each of them, and with nothing else."""
    same = [
        _write(tmp_path, version=1).weights_id,
        _write(tmp_path, version=2, metrics={}, training={}).weights_id,
    ]
    other = [
        _write(tmp_path, version=3, recommender=_recommender(1)).weights_id,
        _write(tmp_path, version=4, vocabulary=Vocabulary(["a", "b", "c"], [4, 0, 9])).weights_id,
        _write(
            tmp_path,
            version=5,
            recommender=_recommender(config=dataclasses.replace(CONFIG, max_length=7)),
        ).weights_id,
    ]

    assert same[0] == same[1]
    assert len({same[0], *other}) == 4
    assert all(0 < weights_id < 2**63 for weights_id in same + other)


def test_a_version_is_written_once(path: Path) -> None:
    """A second write is refused, and the first one's bytes stay."""
    before = {file.name: file.read_bytes() for file in path.iterdir()}

    with pytest.raises(ReleaseError, match="expected a version that is not there yet, got 1"):
        _write(path.parent, recommender=_recommender(1))

    assert {file.name: file.read_bytes() for file in path.iterdir()} == before
    assert [file.name for file in path.parent.iterdir()] == ["1"]


def test_an_empty_folder_is_not_taken_for_a_free_version(tmp_path: Path) -> None:
    """Whoever made the folder may be about to fill it."""
    (tmp_path / "1").mkdir()

    with pytest.raises(ReleaseError, match="not there yet"):
        _write(tmp_path)

    assert [*(tmp_path / "1").iterdir()] == []


def test_a_full_disk_leaves_nothing_behind(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A write that fails in the middle is an error that says why; no half release is there."""

    def full(descriptor: int) -> None:
        raise OSError(28, "No space left on device")

    monkeypatch.setattr(os, "fsync", full)

    with pytest.raises(ReleaseError, match="No space left"):
        _write(tmp_path)

    assert [*tmp_path.iterdir()] == []


def test_a_release_cannot_be_written_into_a_file(tmp_path: Path) -> None:
    """A folder that is none is named."""
    (tmp_path / "file").touch()

    with pytest.raises(ReleaseError, match="file"):
        _write(tmp_path / "file")


def test_every_file_is_safe_before_the_folder_appears(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Three files and their folder are synced before the rename, the parent folder after it."""
    synced: list[tuple[bool, bool]] = []
    fsync = os.fsync

    def record(descriptor: int) -> None:
        is_folder = stat.S_ISDIR(os.fstat(descriptor).st_mode)
        synced.append((is_folder, (tmp_path / "1").exists()))
        fsync(descriptor)

    monkeypatch.setattr(os, "fsync", record)

    _write(tmp_path)

    assert synced == [(False, False)] * 3 + [(True, False), (True, True)]


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        ({"version": 0}, "version must be from 1 to 2147483647, got 0"),
        ({"version": 2**31}, "version must be from 1 to 2147483647, got 2147483648"),
        ({"vocabulary": Vocabulary(["a"], [1])}, "model has 3 items, got a vocabulary of 1"),
        ({"metrics": {"loss": float("nan")}}, "not JSON compliant"),
    ],
)
def test_what_makes_no_release_is_not_written(
    tmp_path: Path, changes: dict[str, Any], message: str
) -> None:
    """The reason stands in the error, and the folder stays empty."""
    with pytest.raises(ValueError, match=message):
        _write(tmp_path, **changes)

    assert [*tmp_path.iterdir()] == []


def test_weights_that_are_not_numbers_are_not_written(tmp_path: Path) -> None:
    """A training run that diverged cannot reach a worker."""
    recommender = _recommender()
    with torch.no_grad():
        recommender.item_bias[1] = torch.nan

    with pytest.raises(ValueError, match="got item_bias with NaN or infinity"):
        _write(tmp_path, recommender=recommender)


@pytest.mark.parametrize("name", FILES)
def test_a_missing_file_is_named(path: Path, name: str) -> None:
    """A folder that was copied in part is corrupt."""
    (path / name).unlink()

    with pytest.raises(ReleaseCorrupt, match=f"{name}: expected a file of the release, got"):
        read_release(path)


@pytest.mark.parametrize("name", FILES)
@pytest.mark.parametrize("kept", [0.0, 0.5, 0.99])
def test_a_truncated_file_is_corrupt(path: Path, name: str, kept: float) -> None:
    """A copy that stopped early is found, wherever it stopped."""
    content = (path / name).read_bytes()
    (path / name).write_bytes(content[: int(kept * len(content))])

    with pytest.raises(ReleaseCorrupt, match=name):
        read_release(path)


@pytest.mark.parametrize("name", ["vocabulary.json", "weights.safetensors"])
def test_a_changed_byte_is_found_by_its_digest(path: Path, name: str) -> None:
    """The error gives both digests."""
    content = bytearray((path / name).read_bytes())
    good = hashlib.sha256(content).hexdigest()
    content[len(content) // 2] ^= 1
    (path / name).write_bytes(content)
    bad = hashlib.sha256(content).hexdigest()

    with pytest.raises(ReleaseCorrupt, match=f"{name}: expected SHA-256 {good}, got {bad}"):
        read_release(path)


def test_a_changed_value_in_the_manifest_is_found_by_its_own_digest(path: Path) -> None:
    """The manifest needs no help from outside to notice damage."""
    text = (path / "manifest.json").read_text()
    (path / "manifest.json").write_text(text.replace('"version": 1', '"version": 2'))

    with pytest.raises(ReleaseCorrupt, match="expected manifest_digest"):
        read_release(path)
    with pytest.raises(ReleaseCorrupt, match="expected manifest_digest"):
        read_manifest(path)


@pytest.mark.parametrize(
    "content",
    [b"", b"not json", b"[1, 2]", b"null", b"\xff\xfe", b'{"a": "\xff"}', b'{"a": NaN}', DEEP],
)
def test_a_manifest_that_is_no_json_object_is_corrupt(path: Path, content: bytes) -> None:
    """Whatever is there instead, the error says what was expected."""
    (path / "manifest.json").write_bytes(content)

    with pytest.raises(ReleaseCorrupt, match=r"manifest\.json: expected a JSON object, got"):
        read_release(path)


@pytest.mark.parametrize("format_version", [0, 2, "1", None])
def test_an_unknown_format_is_incompatible(path: Path, format_version: object) -> None:
    """A release of another software version is refused before anything else is looked at."""
    _change_manifest(path, lambda fields: fields.update(format_version=format_version))

    with pytest.raises(ReleaseIncompatible, match="expected format_version 1, got"):
        read_release(path)


def test_another_manifest_than_the_announced_one_is_corrupt(path: Path) -> None:
    """A folder that was replaced behind its announcement is not loaded."""
    announced = read_release(path).manifest_sha256
    _change_manifest(path, lambda fields: fields["metrics"].update(loss=1.5))
    changed = read_release(path).manifest_sha256

    with pytest.raises(ReleaseCorrupt, match=f"expected SHA-256 {announced}, got {changed}"):
        read_release(path, expected_manifest_sha256=announced)

    assert read_release(path, expected_manifest_sha256=changed).metrics["loss"] == 1.5


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda fields: fields.pop("created"), "missing required field `created`"),
        (lambda fields: fields.update(novelty=1), "unknown field `novelty`"),
        (lambda fields: fields.update(version="1"), r"Expected `int`, got `str` - at `\$.version`"),
        (lambda fields: fields.update(version=-5), r"Expected `int` >= 1 - at `\$.version`"),
        (lambda fields: fields.update(version=10**400), r"Expected `int` <= 2147483647"),
        (lambda fields: fields["model"].update(n_items=0), "n_items must be at least 1, got 0"),
        (lambda fields: fields["model"].pop("n_items"), "missing required field `n_items`"),
        (lambda fields: fields["files"].pop("vocabulary.json"), r"got \['weights.safetensors'\]"),
        (lambda fields: fields["files"].update({"../../etc/passwd": "0"}), r"\.\./\.\./etc"),
    ],
    ids=[
        "missing",
        "unknown",
        "type",
        "below",
        "above",
        "rule",
        "model",
        "file missing",
        "file outside",
    ],
)
def test_a_manifest_with_other_fields_is_incompatible(
    path: Path, change: Callable[[dict[str, Any]], object], message: str
) -> None:
    """A manifest that was written otherwise is refused with the field; no other file is opened."""
    _change_manifest(path, change)

    with pytest.raises(ReleaseIncompatible, match=message):
        read_release(path)


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (b'{"item_ids": ["a", "b"], "counts": [1, 2]}', "expected 3 items, got 2"),
        (b'{"item_ids": ["a", "b", "a"], "counts": [1, 2, 3]}', "got 'a' twice"),
        (b'{"item_ids": ["a", "b", "c"], "counts": [1, 2]}', "one count for each of 3 items"),
        (b'{"item_ids": ["a", "b", 3], "counts": [1, 2, 3]}', "Expected `str`, got `int`"),
        (b"nonsense", "malformed"),
    ],
)
def test_a_vocabulary_of_another_kind_is_incompatible(
    path: Path, content: bytes, message: str
) -> None:
    """Right digests do not make a vocabulary."""
    _replace(path, "vocabulary.json", content)

    with pytest.raises(ReleaseIncompatible, match=rf"vocabulary\.json: .*{message}"):
        read_release(path)


def _with(**changes: torch.Tensor | None) -> bytes:
    weights = dict(_recommender().state_dict()) | changes
    return safetensors.torch.save({name: x for name, x in weights.items() if x is not None})


@pytest.mark.parametrize(
    ("content", "message"),
    [
        (
            _with(item_bias=torch.zeros(5)),
            r"item_bias: expected float32 \(4,\), got float32 \(5,\)",
        ),
        (_with(item_bias=torch.zeros(4).half()), r"item_bias: .*, got float16 \(4,\)"),
        (_with(item_bias=None), r"item_bias: expected float32 \(4,\), got None"),
        (_with(novelty=torch.zeros(1)), r"novelty: expected None, got float32 \(1,\)"),
        (b"nonsense", "expected a safetensors file, got"),
    ],
    ids=["shape", "dtype", "missing", "unknown", "format"],
)
def test_weights_of_another_model_are_incompatible(
    path: Path, content: bytes, message: str
) -> None:
    """The first tensor that does not fit is named, with what was expected and what is there."""
    _replace(path, "weights.safetensors", content)
    release = read_release(path)

    with pytest.raises(ReleaseIncompatible, match=rf"weights\.safetensors: {message}"):
        load_recommender(release)


def test_weights_that_change_after_reading_are_not_loaded(path: Path) -> None:
    """The bytes that become the model are the bytes that were verified."""
    release = read_release(path)
    content = bytearray((path / "weights.safetensors").read_bytes())
    content[-1] ^= 1
    (path / "weights.safetensors").write_bytes(content)

    with pytest.raises(ReleaseCorrupt, match="expected SHA-256"):
        load_serving(release, "cpu")


def test_metrics_are_kept_as_json_sees_them(tmp_path: Path) -> None:
    """Keys become strings and tuples lists, at writing as at reading."""
    release = _write(tmp_path, metrics={"by_k": {10: (0.5, 1e-9), 9: None}})

    assert release.metrics == {"by_k": {"10": [0.5, 1e-9], "9": None}}
