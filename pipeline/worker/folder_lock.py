"""The folder of several worker processes: one supervisor at a time, no orphans beside it."""

import fcntl
import logging
import os
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from state.errors import StateError, StoreLocked

_log = logging.getLogger(__name__)

POLL_S = 0.1


@contextmanager
def lock_folder(folder: Path, wait_s: float) -> Iterator[int]:
    """Hold a folder for one supervisor and its processes; the descriptor is theirs to inherit.

    Processes whose supervisor died are waited for: they are about to stop.

    Raises:
        StateError: The folder cannot be written.
        StoreLocked: A supervisor runs there, or its processes are still there after `wait_s`.
    """
    try:
        folder.mkdir(parents=True, exist_ok=True)
        lock = os.open(folder / "processes.lock", os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        raise _refused(folder, error) from error
    try:
        deadline_s = time.monotonic() + wait_s
        told = False
        while not _try_lock(lock):
            holder = os.pread(lock, 32, 0).decode(errors="replace").strip()
            if _runs(holder) or time.monotonic() > deadline_s:
                msg = (
                    f"{folder} is in use by the supervisor with process {holder} or what it left: "
                    "stop that, or give this one another folder: --worker.data-dir"
                )
                raise StoreLocked(msg)
            if not told:
                _log.info("waiting for the processes of an earlier supervisor to end")
                told = True
            time.sleep(POLL_S)
        try:
            os.ftruncate(lock, 0)
            os.pwrite(lock, str(os.getpid()).encode(), 0)
        except OSError as error:
            raise _refused(folder, error) from error
        yield lock
    finally:
        os.close(lock)


def _refused(folder: Path, error: OSError) -> StateError:
    return StateError(
        f"{folder}: expected a folder to keep states in, got {error}; see to the rights of this "
        f"user there and to room on the disk, then start again"
    )


def _try_lock(descriptor: int) -> bool:
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
    except BlockingIOError:
        return False
    return True


def _runs(pid: str) -> bool:
    try:
        os.kill(int(pid), 0)
    except (ValueError, ProcessLookupError):
        return False
    except PermissionError:
        return True
    return True
