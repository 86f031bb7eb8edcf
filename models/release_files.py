"""Files of a release: opened without waiting, held to a size and to their digest.

Whoever may announce names a folder, and what lies there may be anything: a pipe that nobody writes
to, a device, a file of terabytes that takes no room.
"""

import hashlib
import os
import stat
from collections.abc import Iterator
from contextlib import contextmanager
from io import BufferedReader
from pathlib import Path

from models.errors import ReleaseCorrupt


def read_file(path: Path, most_bytes: int, expected_sha256: str | None = None) -> bytes:
    """Return the bytes of a file.

    Args:
        path: the file.
        most_bytes: the largest size that is read.
        expected_sha256: in hexadecimal; None: take the bytes as they are.

    Raises:
        ReleaseCorrupt: it is missing, no regular file, larger, or of another digest.
    """
    with _opened(path, most_bytes) as (file, size):
        content = file.read(size)
    if expected_sha256 is not None:
        _compare(path, expected_sha256, hashlib.sha256(content).hexdigest())
    return content


def check_file(path: Path, most_bytes: int, expected_sha256: str) -> None:
    """Compare a file's digest without holding its bytes; arguments and errors as in `read_file`."""
    with _opened(path, most_bytes) as (file, _):
        got = hashlib.file_digest(file, "sha256").hexdigest()
    _compare(path, expected_sha256, got)


@contextmanager
def _opened(path: Path, most_bytes: int) -> Iterator[tuple[BufferedReader, int]]:
    """Open a file that is one; its size in bytes beside it."""
    try:
        # Without O_NONBLOCK, a pipe's open would wait until somebody writes to it.
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK)
        try:
            found = os.fstat(descriptor)
            if not stat.S_ISREG(found.st_mode):
                kind = stat.filemode(found.st_mode)[0]
                msg = f"{path}: expected a regular file, got one of type {kind!r}"
                raise ReleaseCorrupt(msg)
            if found.st_size > most_bytes:
                msg = f"{path}: expected at most {most_bytes} bytes, got {found.st_size}"
                raise ReleaseCorrupt(msg)
            with open(descriptor, "rb", closefd=False) as file:
                yield file, found.st_size
        finally:
            os.close(descriptor)
    except OSError as exc:
        msg = f"{path}: expected a file of the release, got: {exc}"
        raise ReleaseCorrupt(msg) from exc


def _compare(path: Path, expected_sha256: str, got: str) -> None:
    if got != expected_sha256:
        msg = f"{path}: expected SHA-256 {expected_sha256}, got {got}"
        raise ReleaseCorrupt(msg)
