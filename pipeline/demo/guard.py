"""What keeps the demo from leaving anything behind: its folder, its signals, its processes."""

import fcntl
import os
import shutil
import signal
import threading
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager, suppress
from pathlib import Path
from typing import NoReturn

from pipeline.errors import DemoFailed, PipelineError

LOOK_PERIOD_S = 0.2
LEAST_FREE_BYTES = 100 * 2**20
EVENT_BYTES = 1024  # of topics, states and changelog, with room to spare: a third of it is usual
REPEAT_S = 5.0  # after this long without an effect the main thread is interrupted again


class Guard:
    """Interrupts the main thread as soon as something that must run has ended.

    Whatever the main thread waits for then (a replay, a training, a slow answer from a Kafka that
    is gone), the `guarding` block ends with one error that says what ended.
    """

    def __init__(self) -> None:
        self._watched: dict[str, Callable[[], str | None]] = {}
        self._found: str | None = None
        self._stopping = threading.Event()

    def watch(self, name: str, why_ended: Callable[[], str | None]) -> None:
        """Watch a process.

        Args:
            name: To end the watch by.
            why_ended: Returns None while it runs, else one line that says what ended and names its
                log; asked from another thread, several times a second.
        """
        self._watched[name] = why_ended

    def let_go(self, name: str) -> None:
        """Watch something no more, since it is about to be stopped."""
        self._watched.pop(name, None)

    @contextmanager
    def guarding(self) -> Iterator[None]:
        """Watch for the length of a `with` block; only for the main thread.

        Raises:
            DemoFailed: Something that was watched has ended.
        """
        thread = threading.Thread(target=self._run, name="guard", daemon=True)
        thread.start()
        try:
            yield
        except (KeyboardInterrupt, PipelineError) as error:
            # An error may be the first that is heard of an end.
            found = self._found or self._find()
            if found is None:
                raise
            raise DemoFailed(found) from error
        finally:
            self._stopping.set()
            thread.join()

    def _find(self) -> str | None:
        lines = (why_ended() for why_ended in [*self._watched.values()])
        return next((line for line in lines if line is not None), None)

    def _run(self) -> None:
        while not self._stopping.wait(LOOK_PERIOD_S):
            self._found = self._find()
            while self._found is not None:
                main = threading.main_thread().ident
                assert main is not None  # it runs
                signal.pthread_kill(main, signal.SIGINT)
                if self._stopping.wait(REPEAT_S):
                    return


@contextmanager
def unwound_by_hang_up() -> Iterator[None]:
    """Let a terminal that closes (SIGHUP) unwind the program as SIGTERM does, unless it is ignored.

    What the block started is stopped by the block; nothing stays behind a closed window.
    """

    def unwind(number: int, frame: object) -> NoReturn:
        raise SystemExit(128 + signal.SIGHUP)

    before = signal.getsignal(signal.SIGHUP)
    if before is signal.SIG_DFL:
        signal.signal(signal.SIGHUP, unwind)
    try:
        yield
    finally:
        signal.signal(signal.SIGHUP, before)


def stop_in_peace() -> None:
    """Ignore what would interrupt this process from now on: it is stopping what it started."""
    for number in (signal.SIGINT, signal.SIGTERM, signal.SIGHUP):
        signal.signal(number, signal.SIG_IGN)


@contextmanager
def own_folder(folder: Path) -> Iterator[None]:
    """Have a folder to itself for the length of a `with` block.

    Raises:
        DemoFailed: Another demo runs there, or it cannot be written.
    """
    lock = folder / "lock"
    try:
        folder.mkdir(parents=True, exist_ok=True)
        descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
    except OSError as error:
        msg = f"{folder}: expected a folder that can be written, in the current one: {error}"
        raise DemoFailed(msg) from error
    try:
        try:
            fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as error:
            owner = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
            msg = f"{folder}: another demo runs there (process {owner}); wait for it or end it"
            raise DemoFailed(msg) from error
        with suppress(OSError):  # on a full disk the lock holds, but does not say whose it is
            os.ftruncate(descriptor, 0)
            os.write(descriptor, b"%d\n" % os.getpid())
        yield
    finally:
        os.close(descriptor)


def remove_earlier_run(paths: Sequence[Path]) -> None:
    """Remove folders and files of a run before this one.

    Raises:
        DemoFailed: One of them cannot be removed.
    """
    for path in paths:
        try:
            if path.is_dir():
                shutil.rmtree(path)
            else:
                path.unlink(missing_ok=True)
        except OSError as error:
            msg = f"{path}: what an earlier demo left cannot be removed: {error}"
            raise DemoFailed(msg) from error


def require_space(folder: Path, events: int) -> None:
    """Refuse to begin where the disk would be full before the end: Kafka does not outlive that.

    Args:
        folder: On the disk.
        events: How many will be replayed.

    Raises:
        DemoFailed: There is too little space.
    """
    wanted, free = LEAST_FREE_BYTES + events * EVENT_BYTES, shutil.disk_usage(folder).free
    if free < wanted:
        msg = (
            f"{folder}: expected {wanted / 2**20:,.0f} MiB free on its disk for {events:,} events, "
            f"got {free / 2**20:,.0f} MiB"
        )
        raise DemoFailed(msg)
