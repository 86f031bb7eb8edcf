"""`manifest.json` of a release: its fields, its bytes and its digests. Knows no model.

The manifest carries the SHA-256 of the release's other files and of its own fields, so a changed
byte is found without help from outside.
"""

import dataclasses
import hashlib
import json
from collections.abc import Mapping
from pathlib import Path
from typing import Annotated, Any

import msgspec

from models.config import ModelConfig
from models.errors import ReleaseCorrupt, ReleaseIncompatible

FORMAT_VERSION = 1
"""Raised by any change of a release's files, a new field included."""

MANIFEST_FILE = "manifest.json"
WEIGHTS_FILE = "weights.safetensors"
VOCABULARY_FILE = "vocabulary.json"
_DIGEST = "manifest_digest"

MAX_VERSION = 2**31 - 1
"""Largest number of a release: rows and metrics have room for more, 64 bits and a float."""
Version = Annotated[int, msgspec.Meta(ge=1, le=MAX_VERSION)]
"""Number of a release, where it is decoded."""


class Manifest(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What `manifest.json` says."""

    format_version: int
    version: Version
    """Number of the release; later ones are higher."""
    created: str
    """ISO 8601, UTC."""
    model: ModelConfig
    files: dict[str, str]
    """SHA-256 of weights and vocabulary, in hexadecimal, by file name."""
    metrics: dict[str, Any]
    """How good the model is, as its maker measured it."""
    training: dict[str, Any]
    """What it was made from and how."""
    manifest_digest: str
    """SHA-256 of the other fields."""

    def weights_id(self) -> int:
        """Return a number in 1..2**63-1 for exactly these weights, vocabulary and config."""
        identity = {"model": dataclasses.asdict(self.model), "files": self.files}
        digest = hashlib.sha256(_canonical(identity)).digest()
        return (int.from_bytes(digest[:8], "little") & (2**63 - 1)) or 1


def encode_manifest(
    *,
    version: int,
    created: str,
    model: ModelConfig,
    files: Mapping[str, str],
    metrics: Mapping[str, Any],
    training: Mapping[str, Any],
) -> bytes:
    """Return the bytes of `manifest.json`.

    Raises:
        ValueError: metrics or training hold NaN or infinity.
        TypeError: they hold what JSON cannot.
    """
    fields = {
        "format_version": FORMAT_VERSION,
        "version": version,
        "created": created,
        "model": dataclasses.asdict(model),
        "files": dict(files),
        "metrics": dict(metrics),
        "training": dict(training),
    }
    fields = json.loads(_canonical(fields))  # as a reader will see them: keys are strings
    return _canonical(fields | {_DIGEST: sha256(_canonical(fields))}, indent=2)


def decode_manifest(path: Path, content: bytes) -> Manifest:
    """Decode the bytes of `manifest.json`; `path` is the file's, for messages.

    The checks go from JSON over format and digest to fields, so that each error names its cause.

    Raises:
        ReleaseCorrupt: the manifest is not as it was written.
        ReleaseIncompatible: it is, but its format is not the one of this software.
    """
    try:
        fields = msgspec.json.decode(content, type=dict[str, Any])
    except (ValueError, RecursionError) as exc:
        msg = f"{path}: expected a JSON object, got: {exc}"
        raise ReleaseCorrupt(msg) from exc
    format_version = fields.get("format_version")
    if format_version != FORMAT_VERSION:
        msg = f"{path}: expected format_version {FORMAT_VERSION}, got {format_version!r}"
        raise ReleaseIncompatible(msg)
    digest = sha256(_canonical({key: fields[key] for key in fields if key != _DIGEST}))
    if fields.get(_DIGEST) != digest:
        msg = f"{path}: expected {_DIGEST} {digest}, got {fields.get(_DIGEST)!r}"
        raise ReleaseCorrupt(msg)
    try:
        manifest = msgspec.convert(fields, Manifest)
    except msgspec.ValidationError as exc:
        msg = f"{path}: expected the fields of format {FORMAT_VERSION}, got: {exc}"
        raise ReleaseIncompatible(msg) from exc
    if manifest.files.keys() != {WEIGHTS_FILE, VOCABULARY_FILE}:
        msg = f"{path}: expected files {WEIGHTS_FILE}, {VOCABULARY_FILE}, got {[*manifest.files]}"
        raise ReleaseIncompatible(msg)
    return manifest


def sha256(content: bytes) -> str:
    """Return the SHA-256 of bytes, in hexadecimal."""
    return hashlib.sha256(content).hexdigest()


def _canonical(fields: Mapping[str, Any], indent: int | None = None) -> bytes:
    text = json.dumps(fields, sort_keys=True, indent=indent, ensure_ascii=False, allow_nan=False)
    return text.encode()
