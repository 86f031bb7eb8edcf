"""A real worker as a child process, which can be made to die at a named stage.

Run as `python -m tests.worker_process STAGE:N --settings...`: the N-th time that the stage is
reached the process kills itself with SIGKILL, as a crash would; `none:0` never dies.
"""

import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from urllib.error import URLError
from urllib.request import urlopen

from pipeline.settings import Settings, settings_flags

ROOT = Path(__file__).parent.parent
START_DEADLINE_S = 60.0


class WorkerProcess:
    """A worker's process and its log."""

    def __init__(self, settings: Settings, *, die_at: str = "none:0") -> None:
        self.settings = settings
        self.log_file = settings.worker.data_dir.parent / "worker.log"
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        arguments = [sys.executable, "-m", "tests.worker_process", die_at]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*arguments, *settings_flags(settings)], cwd=ROOT, stdout=log, stderr=log
            )

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def wait_until_ready(self) -> None:
        """Wait until its partitions flow."""
        port = self.settings.metrics.port
        deadline = time.monotonic() + START_DEADLINE_S
        while time.monotonic() < deadline:
            assert self.process.poll() is None, self.log()[-3000:]
            try:
                with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=2):
                    return
            except (URLError, OSError):
                time.sleep(0.1)
        raise AssertionError(f"not ready within {START_DEADLINE_S} s\n{self.log()[-3000:]}")

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


def main() -> None:
    from prometheus_client import REGISTRY

    from pipeline.commands.worker import Command
    from pipeline.log import configure_logging
    from pipeline.settings import parse_command
    from pipeline.worker.app import create_worker

    stage, _, times = sys.argv[1].partition(":")
    left = int(times)

    def die(reached: str) -> None:
        nonlocal left
        if reached == stage:
            left -= 1
            if left == 0:
                os.kill(os.getpid(), signal.SIGKILL)

    command = parse_command(Command, sys.argv[2:], prog="worker")
    configure_logging(command.settings.log)
    create_worker(command.settings, REGISTRY, at_stage=die if left else None).run()


if __name__ == "__main__":
    main()
