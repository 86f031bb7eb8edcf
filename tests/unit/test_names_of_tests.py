"""Names of tests are the same in each process that runs them, or pytest-xdist refuses to begin."""

import os

import pytest


@pytest.mark.parametrize("data", [os.urandom(64)])
def test_a_name_holds_no_data_that_differ_between_processes(
    request: pytest.FixtureRequest, data: bytes
) -> None:
    """Each process collects the tests by itself, and has other random bytes here."""
    assert request.node.name.endswith("[64 bytes]")
    assert len(data) == 64
