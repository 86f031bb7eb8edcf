"""Keeping freed memory: the process's page faults, and the memory handed back."""

import resource
import sys

import pytest
import torch

from models.allocator import freed_memory_kept

BLOCK_BYTES = 64 * 2**20
"""Above every threshold from which glibc maps a block by itself."""


def page_faults_of(block_bytes: int) -> int:
    """Allocate, fill and free a block; count the pages that the system had to provide."""
    before = resource.getrusage(resource.RUSAGE_SELF).ru_minflt
    torch.ones(block_bytes, dtype=torch.uint8)
    return resource.getrusage(resource.RUSAGE_SELF).ru_minflt - before


def test_freed_blocks_are_reused_inside_and_handed_back_behind() -> None:
    """Inside, a block that fits where one was costs no new pages; behind it, it does again."""
    with freed_memory_kept() as acts:
        page_faults_of(BLOCK_BYTES)
        # The best of a few: other threads of the process take pages, too.
        kept = min(page_faults_of(BLOCK_BYTES // 2) for _ in range(5))
    handed_back = max(page_faults_of(BLOCK_BYTES // 2) for _ in range(5))

    if not acts:
        pytest.skip("the C library is not glibc")
    assert kept < 10 < handed_back


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system the body just runs."""
    monkeypatch.setattr(sys, "platform", "darwin")

    with freed_memory_kept() as acts:
        assert not acts
