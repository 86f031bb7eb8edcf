"""Keeping freed memory: the process's page faults, and the memory handed back."""

import ctypes
import resource
import subprocess
import sys
from pathlib import Path

import pytest
import torch

from models.training.allocator import freed_memory_kept

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


def test_batches_of_ever_other_shapes_do_not_grow_the_heap() -> None:
    """What is remembered of one shape must not lie between the freed blocks of another."""
    if not hasattr(ctypes.CDLL(None), "mallinfo2"):
        pytest.skip("the C library does not tell the size of its heap")
    done = subprocess.run(
        [sys.executable, __file__],
        cwd=Path(__file__).parents[2],
        check=True,
        capture_output=True,
        text=True,
    )

    warm_mib, end_mib = map(int, done.stdout.split())

    assert end_mib < warm_mib + 50  # 140 more where oneDNN remembers every shape


def test_elsewhere_it_does_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """On another system the body just runs."""
    monkeypatch.setattr(sys, "platform", "darwin")

    with freed_memory_kept() as acts:
        assert not acts


class _HeapInfo(ctypes.Structure):
    """struct mallinfo2 of glibc."""

    _fields_ = [(f"field_{n}", ctypes.c_size_t) for n in range(10)]


def print_heap_of_many_shapes() -> None:
    """Print the heap's MiB after 50 batches and after 150, each of its own number of rows."""
    libc = ctypes.CDLL(None)
    libc.mallinfo2.restype = _HeapInfo
    generator = torch.Generator().manual_seed(0)
    with freed_memory_kept():
        for step in range(1, 151):
            rows = int(torch.randint(2000, 3000, (), generator=generator))
            x = torch.randn(rows, 256, generator=generator, requires_grad=True)
            layers = [x]
            for _ in range(4):
                layers.append(torch.nn.functional.gelu(layers[-1]))
            layers[-1].sum().backward()
            del layers
            if step in (50, 150):
                print(libc.mallinfo2().field_0 >> 20)


if __name__ == "__main__":
    print_heap_of_many_shapes()
