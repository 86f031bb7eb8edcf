"""Release folders made to harm: right digests, and files that are not what a file should be."""

import dataclasses
import json
import math
import os
import struct
import threading
import tracemalloc
from pathlib import Path

import pytest
import safetensors.torch

import models.release
from models.config import ModelConfig
from models.errors import ReleaseCorrupt, ReleaseIncompatible
from models.manifest import encode_manifest, sha256
from models.recommender import Recommender
from models.release import Release, load_recommender, read_manifest, read_release
from models.release_files import read_file
from tests.releases import random_release

FILES = ["manifest.json", "vocabulary.json", "weights.safetensors"]


@pytest.fixture
def release(tmp_path: Path) -> Release:
    """A whole release of three items."""
    return random_release(tmp_path, ["a", "b", "c"])


def write_manifest(release: Release, config: ModelConfig | None = None) -> None:
    """Write a manifest of these sizes and of the files as they are, its digests right."""
    names = FILES[1:]
    content = encode_manifest(
        version=release.version,
        created=release.created,
        model=config or release.config,
        files={name: sha256((release.path / name).read_bytes()) for name in names},
        metrics={},
        training={},
    )
    (release.path / "manifest.json").write_bytes(content)


@pytest.mark.parametrize("name", FILES)
def test_a_pipe_is_refused_without_waiting(release: Release, name: str) -> None:
    """Nobody writes to it: whoever waited would wait for ever, and hear of no other release."""
    (release.path / name).unlink()
    os.mkfifo(release.path / name)
    refused = []

    def read() -> None:
        with pytest.raises(ReleaseCorrupt, match=f"{name}: expected a regular file, got .* 'p'"):
            read_release(release.path)
        refused.append(name)

    thread = threading.Thread(target=read, daemon=True)
    thread.start()
    thread.join(10)

    assert refused == [name]


def test_a_folder_in_place_of_a_file_is_refused(release: Release) -> None:
    """It is told what was expected there."""
    (release.path / "vocabulary.json").unlink()
    (release.path / "vocabulary.json").mkdir()

    with pytest.raises(ReleaseCorrupt, match="expected a regular file, got one of type 'd'"):
        read_release(release.path)


@pytest.mark.parametrize("name", FILES)
def test_a_file_larger_than_any_of_its_kind_is_not_read(release: Release, name: str) -> None:
    """A hole of terabytes takes no room on the disk, but would take all memory."""
    os.truncate(release.path / name, 2**40)

    with pytest.raises(ReleaseCorrupt, match=f"{name}: expected at most .* got {2**40}"):
        read_release(release.path)


def test_a_manifest_that_is_read_alone_is_bounded_too(release: Release) -> None:
    """A trainer looks at those of all releases."""
    os.truncate(release.path / "manifest.json", 2**40)

    with pytest.raises(ReleaseCorrupt, match=f"manifest.json: expected at most .* got {2**40}"):
        read_manifest(release.path)


@pytest.mark.parametrize(("more_bytes", "refusal"), [(0, "SHA-256"), (1, "at most")])
def test_weights_have_the_size_of_their_model(
    release: Release, more_bytes: int, refusal: str
) -> None:
    """And a header, which is bounded: what is larger is not read, whatever its digest."""
    numbers = sum(tensor.numel() for tensor in load_recommender(release).state_dict().values())
    most_bytes = 4 * numbers + models.release.MAX_WEIGHTS_HEADER_BYTES
    os.truncate(release.path / "weights.safetensors", most_bytes + more_bytes)

    for read in (lambda: read_release(release.path), lambda: load_recommender(release)):
        with pytest.raises(ReleaseCorrupt, match=f"weights.safetensors: expected {refusal}"):
            read()


def test_no_model_is_so_large_that_its_weights_are_not_bounded(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Sizes that a manifest claims allow no more than what any worker may read."""
    monkeypatch.setattr(models.release, "MAX_WEIGHTS_BYTES", 100)

    with pytest.raises(ReleaseCorrupt, match=r"weights\.safetensors: expected at most 100 bytes"):
        read_release(release.path)


@pytest.mark.parametrize("name", ["vocabulary.json", "weights.safetensors"])
def test_a_file_of_another_digest_takes_no_memory(release: Release, name: str) -> None:
    """Bytes are kept only when they are known to be those that were written."""
    large_bytes = 12 * 2**20
    os.truncate(release.path / name, large_bytes)

    tracemalloc.start()
    try:
        with pytest.raises(ReleaseCorrupt, match="expected SHA-256"):
            read_release(release.path)
        _, peak_bytes = tracemalloc.get_traced_memory()
    finally:
        tracemalloc.stop()

    assert peak_bytes < large_bytes / 4


def test_blocks_are_not_built_before_the_weights_have_them(
    release: Release, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A manifest that claims a thousand costs no more than one that claims two."""
    built = []

    class Watched(Recommender):
        def __init__(self, config: ModelConfig) -> None:
            built.append(config.n_blocks)
            super().__init__(config)

    write_manifest(release, dataclasses.replace(release.config, n_blocks=1000))
    monkeypatch.setattr(models.release, "Recommender", Watched)

    with pytest.raises(ReleaseIncompatible, match=r"blocks\.10\..*: expected float32 .* got None"):
        load_recommender(read_release(release.path))

    assert set(built) == {1}


@pytest.mark.parametrize(
    ("dtype", "bits"),
    [("F4", 4), ("F6_E2M3", 6), ("F8_E8M0", 8), ("F8_E4M3", 8), ("U64", 64), ("C64", 64)],
)
def test_weights_of_numbers_that_torch_does_not_know_are_incompatible(
    release: Release, dtype: str, bits: int
) -> None:
    """The file is one of safetensors all the same; it is refused as any of another format."""
    path = release.path / "weights.safetensors"
    content = path.read_bytes()
    (size,) = struct.unpack("<Q", content[:8])
    header = json.loads(content[8 : 8 + size])
    begin, end = header["item_embedding"]["data_offsets"]
    header["item_embedding"] |= {"dtype": dtype, "shape": [8 * (end - begin) // bits]}
    encoded = json.dumps(header).encode()
    path.write_bytes(struct.pack("<Q", len(encoded)) + encoded + content[8 + size :])
    write_manifest(release)

    with pytest.raises(ReleaseIncompatible, match=r"weights\.safetensors: "):
        load_recommender(read_release(release.path))


@pytest.mark.parametrize("number", [math.nan, math.inf])
def test_weights_that_are_no_numbers_are_incompatible(release: Release, number: float) -> None:
    """Nobody writes them by this software, but whoever announces need not use it."""
    path = release.path / "weights.safetensors"
    weights = safetensors.torch.load(path.read_bytes())
    weights["item_bias"][2] = number
    path.write_bytes(safetensors.torch.save(weights))
    write_manifest(release)

    with pytest.raises(ReleaseIncompatible, match=f"finite scores for every .*, got {number}"):
        load_recommender(read_release(release.path))


def test_no_file_stays_open(release: Release) -> None:
    """Neither one that was read nor one that was refused: releases come and go."""
    before = os.listdir("/proc/self/fd")

    read_release(release.path)
    os.truncate(release.path / "manifest.json", 2**40)
    with pytest.raises(ReleaseCorrupt):
        read_release(release.path)

    assert os.listdir("/proc/self/fd") == before


def test_no_more_is_read_of_a_file_than_it_said_to_hold() -> None:
    """One of the kernel says 0 bytes and may give any number; another one may grow."""
    assert read_file(Path("/proc/self/status"), 100) == b""
