"""Numbers of releases: whatever the models topic says, the next one is free and can be served."""

import tempfile
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry

from models.manifest import MAX_VERSION
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.training.folder import MAX_COUNTED, free_number, release_versions
from pipeline.worker.hotswap import Swapper
from pipeline.worker.releases import decode_announcement
from tests.verify_world import ListedRecord

NUMBERS = st.one_of(
    st.integers(1, 20),
    st.integers(MAX_COUNTED - 2, MAX_COUNTED + 2),
    st.integers(MAX_VERSION - 2, MAX_VERSION + 2),
    st.integers(),
    st.sampled_from([2**63 - 1, 2**63, 2**64, 10**400, -(10**400)]),
)


def record(version: int | str) -> ListedRecord:
    """A record that announces a release nowhere by this number."""
    rest = b'"location":"/nowhere","manifest_sha256":"00","created":"x"}'
    value = b'{"version":' + str(version).encode() + b"," + rest
    return ListedRecord("models", 0, 0, 0, None, value)


@given(announced=st.lists(NUMBERS, max_size=8), own=st.sets(st.integers(1, 25), max_size=4))
def test_the_next_number_is_free_and_of_a_release(announced: list[int], own: set[int]) -> None:
    """It is behind all of the folder, not announced, and one that a worker takes."""
    decoded = (decode_announcement(record(number)) for number in announced)
    numbers = {one.version for one in decoded if one is not None}
    with tempfile.TemporaryDirectory() as folder:
        for number in own:
            (Path(folder) / str(number)).mkdir()

        free = free_number(Path(folder), numbers)
        (Path(folder) / str(free)).mkdir()

        assert numbers == {number for number in announced if 1 <= number <= MAX_VERSION}
        assert free not in numbers | own
        assert free > max(own | {n for n in numbers if n <= MAX_COUNTED}, default=0)
        assert release_versions(Path(folder))[-1] == free  # its folder is seen
        assert decode_announcement(record(free)) is not None


@pytest.mark.parametrize("digits", ["0", "-5", "9223372036854775808", "9" * 400, "9" * 5000, "1e3"])
def test_what_cannot_be_a_number_announces_nothing(digits: str) -> None:
    """The worker goes on, and counts no release as rejected."""
    registry = CollectorRegistry()

    Swapper(Settings(), Metrics(registry)).hear(record(digits))

    assert registry.get_sample_value("lrurec_model_rejected_version") == 0


def test_the_highest_number_is_told_as_it_is() -> None:
    """A release of it that cannot be served is named on the page of metrics."""
    registry = CollectorRegistry()

    Swapper(Settings(), Metrics(registry)).hear(record(MAX_VERSION))

    assert registry.get_sample_value("lrurec_model_rejected_version") == MAX_VERSION
