"""An operating system that refuses, for real, whoever runs the tests."""

import ctypes
import resource
from collections.abc import Iterator
from contextlib import contextmanager

DAC_OVERRIDE, DAC_READ_SEARCH = 1, 2  # what lets root open every file, see capabilities(7)
VERSION_3 = 0x20080522


@contextmanager
def file_size_limit(size_bytes: int) -> Iterator[None]:
    """Let no file of this process grow beyond a size: writes fail as on a full disk."""
    soft, hard = resource.getrlimit(resource.RLIMIT_FSIZE)
    resource.setrlimit(resource.RLIMIT_FSIZE, (size_bytes, hard))
    try:
        yield
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, (soft, hard))


@contextmanager
def no_more_than_the_rights_of_files() -> Iterator[None]:
    """Let this thread open only what a file's mode allows, also where root runs the tests."""
    libc = ctypes.CDLL(None, use_errno=True)
    header = (ctypes.c_uint32 * 2)(VERSION_3, 0)
    # effective, permitted and inheritable: of the first 32, then of the others
    capabilities = (ctypes.c_uint32 * 6)()
    assert libc.capget(header, capabilities) == 0, ctypes.get_errno()
    effective = capabilities[0]
    capabilities[0] &= ~(1 << DAC_OVERRIDE | 1 << DAC_READ_SEARCH)
    assert libc.capset(header, capabilities) == 0, ctypes.get_errno()
    try:
        yield
    finally:
        capabilities[0] = effective
        assert libc.capset(header, capabilities) == 0, ctypes.get_errno()
