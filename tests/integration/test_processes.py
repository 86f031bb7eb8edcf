"""Children that end with their owner: real processes, told to stop, stubborn, orphaned."""

import signal
import subprocess
import sys
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path

import psutil
import pytest

from pipeline.demo.processes import ChildProcess
from tests.kafka import wait_until

POLITE = """
import signal, sys, time
def stop(*_):
    print("bye", flush=True)
    sys.exit(7)
signal.signal(signal.SIGTERM, stop)
print("ready", flush=True)
time.sleep(600)
"""
STUBBORN = """
import signal, subprocess, sys, time
signal.signal(signal.SIGTERM, signal.SIG_IGN)
child = subprocess.Popen(["sleep", "600"])
print("ready", child.pid, flush=True)
time.sleep(600)
"""
OWNER = """
import sys, time
from pathlib import Path
from pipeline.demo.processes import ChildProcess
child = ChildProcess([sys.executable, "-c", sys.argv[1]], Path(sys.argv[2]))
time.sleep(600)
"""


def runs(process: psutil.Process) -> bool:
    """Whether it runs, and is not merely waiting to be collected."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def python(code: str) -> Sequence[str]:
    return [sys.executable, "-c", code]


def wait_for_line(log_file: Path, word: str) -> str:
    """Wait for a line of a log that begins with a word, and return it."""

    def lines() -> list[str]:
        text = log_file.read_text() if log_file.exists() else ""
        return [line for line in text.splitlines() if line.startswith(word)]

    wait_until(lines, f"{word!r} in {log_file}")
    return lines()[0]


def test_a_child_that_is_asked_to_stop_leaves_with_its_own_code(tmp_path: Path) -> None:
    """Both its streams are in the log."""
    child = ChildProcess(python(POLITE), tmp_path / "log")
    wait_for_line(tmp_path / "log", "ready")
    assert child.poll() is None

    code = child.stop(30)

    assert code == child.poll() == 7
    assert child.last_line() == "bye"


def test_a_child_that_does_not_stop_is_killed_with_all_it_started(tmp_path: Path) -> None:
    """Nothing of it runs on."""
    child = ChildProcess(python(STUBBORN), tmp_path / "log")
    grandchild = psutil.Process(int(wait_for_line(tmp_path / "log", "ready").split()[1]))

    child.stop(0.2)

    wait_until(lambda: not runs(grandchild), "the end of the child's child")


@pytest.mark.parametrize(
    ("code", "expected", "last"),
    [
        ("raise SystemExit(3)", 3, ""),
        ("nonsense", 1, "NameError: name 'nonsense' is not defined"),
    ],
)
def test_a_child_that_ends_by_itself_is_seen(
    tmp_path: Path, code: str, expected: int, last: str
) -> None:
    """With its exit code and its last words."""
    child = ChildProcess(python(code), tmp_path / "log")

    wait_until(lambda: child.poll() is not None, "its end")

    assert child.poll() == expected
    assert child.last_line() == (
        "" if expected == 3 else "NameError: name 'nonsense' is not defined"
    )
    assert child.stop(1) == expected


def _command_line(process: psutil.Process) -> list[str]:
    with suppress(psutil.Error):
        return process.cmdline()
    return []


def test_a_killed_child_is_told_by_its_signal(tmp_path: Path) -> None:
    """128 and the number of the signal, as a shell has it."""
    with ChildProcess(python(POLITE), tmp_path / "log") as child:
        wait_for_line(tmp_path / "log", "ready")
        # Of this child alone: the run's own Kafka is a child of this process, too.
        below = [p for p in psutil.process_iter() if str(tmp_path / "log") in _command_line(p)]
        shell = next(p for p in below if p.name() == "sh")
        own = next(p for p in shell.children(recursive=True) if p.name() != "sh")

        own.kill()

        wait_until(lambda: child.poll() is not None, "its end")
        assert child.poll() == 128 + signal.SIGKILL


def test_a_child_ends_when_its_owner_is_killed(tmp_path: Path) -> None:
    """It is asked to stop, as by its owner."""
    log_file = tmp_path / "log"
    with subprocess.Popen([*python(OWNER), POLITE, str(log_file)]) as owner:
        wait_for_line(log_file, "ready")
        children = psutil.Process(owner.pid).children(recursive=True)

        owner.kill()

    wait_for_line(log_file, "bye")
    wait_until(lambda: not any(runs(one) for one in children), "the end of its children")
