"""Keep glibc from handing the memory of big tensors back to the system at every step.

A training step frees the same big blocks that the next one asks for. By default glibc maps such
blocks one by one and unmaps them when freed, so that every step has the system clear hundreds of
megabytes anew: up to half the time of a step on a CPU. Options and their numbers: mallopt(3) and
malloc.h of glibc.

What is kept must fit what is asked for next. oneDNN, which torch uses for GELU, remembers what it
prepared for each shape, 1,024 of them, and every batch has other shapes: small blocks that stay
amid the big ones, so that bigger ones fit nowhere and the process grows (MovieLens-1M: from one
gigabyte to five). It is told to remember few.
"""

import ctypes
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager

ONEDNN_CAPACITY = (b"ONEDNN_PRIMITIVE_CACHE_CAPACITY", b"16")
"""Read by oneDNN when it is first used in a process."""

M_TRIM_THRESHOLD = -1
M_MMAP_THRESHOLD = -3
M_MMAP_MAX = -4

NEVER = -1
DEFAULT_MMAP_MAX = 65536
LARGEST_MMAP_THRESHOLD = 32 * 2**20
"""Where glibc's own threshold stops rising by itself (DEFAULT_MMAP_THRESHOLD_MAX, 64 bit)."""


@contextmanager
def freed_memory_kept() -> Iterator[bool]:
    """Reuse freed memory within the process, and hand it back at the end.

    oneDNN's memory is bounded where the process did not use it before, and stays so.

    Acts on the whole process, and where the C library is not glibc not at all. What the main
    thread allocates gains by it; other threads have arenas of their own, whose heaps end at 64 MiB
    (HEAP_MAX_SIZE), and glibc maps their bigger blocks one by one whatever the options. For the
    whole life of a process, the environment variables MALLOC_MMAP_MAX_=0 and
    MALLOC_TRIM_THRESHOLD_=100000000000 do the same.

    Yields:
        Whether the C library is glibc.
    """
    libc = _glibc()
    if libc is None:
        yield False
        return
    libc.setenv(*ONEDNN_CAPACITY, 0)  # not over what the user set
    libc.mallopt(M_MMAP_MAX, 0)
    libc.mallopt(M_TRIM_THRESHOLD, NEVER)
    try:
        yield True
    finally:
        # Any mallopt stops glibc from adapting its thresholds: leave them where it would end.
        libc.mallopt(M_MMAP_MAX, DEFAULT_MMAP_MAX)
        libc.mallopt(M_MMAP_THRESHOLD, LARGEST_MMAP_THRESHOLD)
        libc.mallopt(M_TRIM_THRESHOLD, 2 * LARGEST_MMAP_THRESHOLD)
        libc.malloc_trim(0)


def _glibc() -> ctypes.CDLL | None:
    """Return the process's own C library if it is glibc."""
    if sys.platform != "linux" or "CS_GNU_LIBC_VERSION" not in os.confstr_names:
        return None
    try:
        version = os.confstr("CS_GNU_LIBC_VERSION")
    except OSError:  # another library, which does not know the question
        return None
    return ctypes.CDLL(None) if version and version.startswith("glibc") else None
