"""A real worker as a child process, which can be made to die or to freeze at a named stage.

Run as `python -m tests.worker_process STAGE:N:SIGNAL --settings...`: the N-th time that the stage
is reached the process sends itself the signal: KILL, as a crash would, or STOP, which freezes it
there until it is sent SIGCONT. `none:0:KILL` never does.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from pipeline.settings import Settings, settings_flags

ROOT = Path(__file__).parent.parent
START_DEADLINE_S = 60.0


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
        at = f"{die_at}:KILL" if freeze_at is None else f"{freeze_at}:STOP"
        arguments = [sys.executable, "-m", module, at]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*arguments, *settings_flags(settings)], cwd=ROOT, stdout=log, stderr=log
            )

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


def signal_at_stage(argument: str) -> Callable[[str], None] | None:
    """Read STAGE:N:SIGNAL; what to call with each stage that is reached."""
    stage, times, name = argument.split(":")
    left = int(times)

    def reach(reached: str) -> None:
        nonlocal left
        if reached == stage:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.Signals[f"SIG{name}"])

    return reach if left else None


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
