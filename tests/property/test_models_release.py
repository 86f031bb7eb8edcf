"""No damaged byte of a release is read as something else."""

import tempfile
from collections.abc import Iterator
from pathlib import Path

import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.config import ModelConfig
from models.errors import ReleaseError
from models.recommender import Recommender
from models.release import Release, load_recommender, read_release, write_release
from models.vocabulary import Vocabulary


@pytest.fixture(scope="module")
def release() -> Iterator[Release]:
    """A small release."""
    config = ModelConfig(n_items=2, hidden_size=2, state_size=2, n_blocks=1)
    with tempfile.TemporaryDirectory() as folder:
        yield write_release(
            Path(folder),
            version=1,
            recommender=Recommender(config, torch.Generator().manual_seed(0)),
            vocabulary=Vocabulary(["a", "ü"], [3, 4]),
            metrics={"recall@10": 0.25},
            training={},
        )


@given(
    name=st.sampled_from(["manifest.json", "vocabulary.json", "weights.safetensors"]),
    place=st.floats(0, 1, exclude_max=True),
    bits=st.integers(1, 255),
)
def test_no_changed_byte_is_read_as_something_else(
    release: Release, name: str, place: float, bits: int
) -> None:
    """Any byte changed in any way is refused, or (blanks of the manifest) means the same."""
    path = release.path / name
    content = path.read_bytes()
    damaged = bytearray(content)
    damaged[int(place * len(content))] ^= bits

    path.write_bytes(damaged)
    try:
        found = read_release(release.path)
        load_recommender(found)
    except ReleaseError:
        return
    finally:
        path.write_bytes(content)

    assert (found.version, found.created) == (release.version, release.created)
    assert (found.weights_id, found.config) == (release.weights_id, release.config)
    assert (found.metrics, found.training) == (release.metrics, release.training)
