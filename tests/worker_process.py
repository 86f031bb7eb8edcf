"""A real worker as a child process, which can be made to die or to freeze at a named stage.

Run as `python -m tests.worker_process STAGE:N:SIGNAL --settings...`: the N-th time that the stage
is reached the process sends itself the signal: KILL, as a crash would, or STOP, which freezes it
there until it is sent SIGCONT. `none:0:KILL` never does.

Most of what a start takes is Python reading torch. Tests, which start hundreds of workers, have
them forked from a process that has read it and begun nothing (`fork_workers`).
"""

import importlib
import multiprocessing
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Protocol
from urllib.error import URLError
from urllib.request import urlopen

from pipeline.settings import Settings, settings_flags

ROOT = Path(__file__).parent.parent
START_DEADLINE_S = 60.0
READ_BEFORE = ("pipeline.commands.worker", "pipeline.worker.app")


class Process(Protocol):
    """What is asked of a worker's process; a `subprocess.Popen` is one."""

    pid: int

    def poll(self) -> int | None: ...
    def wait(self, timeout: float | None = None) -> int: ...
    def send_signal(self, sig: int) -> None: ...
    def kill(self) -> None: ...


def _spawned(command: list[str], log_file: Path) -> Process:
    """A new Python, as an operator starts it."""
    with log_file.open("ab") as log:
        return subprocess.Popen([sys.executable, "-m", *command], cwd=ROOT, stdout=log, stderr=log)


class _Forked:
    """A fork of the process that has read torch, with the manners of a `subprocess.Popen`."""

    def __init__(self, command: list[str], log_file: Path) -> None:
        context = multiprocessing.get_context("forkserver")
        context.set_forkserver_preload(list(READ_BEFORE))
        # As a daemon it goes when the tests go; it starts no process of multiprocessing's.
        self._process = context.Process(target=_become, args=(command, log_file), daemon=True)
        self._process.start()
        assert self._process.pid is not None
        self.pid = self._process.pid

    def poll(self) -> int | None:
        return self._process.exitcode

    def wait(self, timeout: float | None = None) -> int:
        self._process.join(timeout)
        code = self._process.exitcode
        if code is None:
            raise subprocess.TimeoutExpired("worker", timeout or 0.0)
        return code

    def send_signal(self, sig: int) -> None:
        if self.poll() is None:
            os.kill(self.pid, sig)

    def kill(self) -> None:
        self.send_signal(signal.SIGKILL)


def _become(command: list[str], log_file: Path) -> None:
    """Be `python -m MODULE ARGUMENTS...` from here on."""
    with log_file.open("ab") as log:
        os.dup2(log.fileno(), 1)
        os.dup2(log.fileno(), 2)
    os.chdir(ROOT)
    module, *arguments = command
    sys.argv = [module, *arguments]
    importlib.import_module(module).main()


_start: Callable[[list[str], Path], Process] = _spawned


@contextmanager
def fork_workers() -> Iterator[None]:
    """Workers that start meanwhile are forks of one process that has read torch."""
    global _start
    _start, before = _Forked, _start
    try:
        yield
    finally:
        _start = before


class WorkerProcess:
    """A worker's process and its log.

    Args:
        settings: Those of the worker.
        die_at: STAGE:N, where it kills itself.
        freeze_at: STAGE:N, where it freezes itself instead.
        module: What is run; reads the same command line.
    """

    def __init__(
        self,
        settings: Settings,
        *,
        die_at: str = "none:0",
        freeze_at: str | None = None,
        module: str = "tests.worker_process",
    ) -> None:
        self.settings = settings
        self.log_file = settings.worker.data_dir.parent / "worker.log"
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        self.log_file.touch()
        at = f"{die_at}:KILL" if freeze_at is None else f"{freeze_at}:STOP"
        self.process = _start([module, at, *settings_flags(settings)], self.log_file)

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until its partitions flow."""
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()[-3000:]
            if self.is_ready():
                return
            time.sleep(0.1)
        raise AssertionError(f"not ready within {START_DEADLINE_S} s\n{self.log()[-3000:]}")

    def is_ready(self) -> bool:
        """Whether /readyz says yes."""
        try:
            with urlopen(f"http://127.0.0.1:{self.settings.metrics.port}/readyz", timeout=2):
                return True
        except (URLError, OSError):
            return False

    def metric(self, name: str) -> float:
        """The value of one series, as /metrics shows it."""
        port = self.settings.metrics.port
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=5) as answer:
            for line in answer.read().decode().splitlines():
                if line.startswith(name + " "):
                    return float(line.rpartition(" ")[2])
        raise AssertionError(f"no series {name}")

    def kill(self) -> None:
        self.process.kill()
        self.process.wait(10)

    def stop(self, timeout_s: float = 20.0) -> int:
        """SIGTERM; its exit code."""
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(timeout_s)

    def wait(self, timeout_s: float = 60.0) -> int:
        """Wait for its own end; its exit code."""
        return self.process.wait(timeout_s)


@contextmanager
def running_worker(settings: Settings, *, die_at: str = "none:0") -> Iterator[WorkerProcess]:
    """A worker that is gone at the end, however the test ends."""
    worker = WorkerProcess(settings, die_at=die_at)
    try:
        yield worker
    finally:
        if worker.process.poll() is None:
            worker.kill()


def signal_at_stage(argument: str) -> Callable[[str], None]:
    """Read STAGE:N:SIGNAL; what to call with each stage that is reached."""
    stage, times, name = argument.split(":")
    left = int(times)

    def reach(reached: str) -> None:
        nonlocal left
        if reached == stage:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.Signals[f"SIG{name}"])

    return reach


def main() -> None:
    from prometheus_client import REGISTRY

    from pipeline.commands.worker import Command
    from pipeline.log import configure_logging
    from pipeline.settings import parse_command
    from pipeline.worker.app import create_worker

    command = parse_command(Command, sys.argv[2:], prog="worker")
    configure_logging(command.settings.log)
    create_worker(command.settings, REGISTRY, at_stage=signal_at_stage(sys.argv[1])).run()


if __name__ == "__main__":
    main()
