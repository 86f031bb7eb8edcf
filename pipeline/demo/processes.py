"""Child processes that write a log, can be told to stop, and end when their owner does."""

import os
import signal
import subprocess
from collections.abc import Sequence
from contextlib import suppress
from pathlib import Path
from typing import Self

KILL_DEADLINE_S = 5.0
ABORT_DEADLINE_S = 3.0
# A shell in a session of its own, so that Ctrl-C in a terminal reaches the owner alone. When its
# stdin closes, on purpose or because the owner died, it asks the program to stop (SIGTERM); it
# leaves with the program's exit code.
TIED_SCRIPT = """
exec 3<&0 </dev/null >>"$0" 2>&1
"$@" 3<&- &
child=$!
{ read -r _ <&3; kill -TERM $child; } &
watcher=$!
exec 3<&-
wait $child
code=$?
kill $watcher 2>/dev/null
exit $code
"""


class ChildProcess:
    """A program that was started by this process and ends with it, however that dies.

    As a context it is gone at the end: asked to stop, and killed when it takes too long.

    Args:
        arguments: The program and its arguments.
        log_file: Takes stdout and stderr; what is in it stays.

    Attributes:
        log_file: As given.
    """

    def __init__(self, arguments: Sequence[str], log_file: Path) -> None:
        self.log_file = log_file
        self._shell = subprocess.Popen(
            ["/bin/sh", "-c", TIED_SCRIPT, str(log_file), *arguments],
            stdin=subprocess.PIPE,
            start_new_session=True,
        )

    def poll(self) -> int | None:
        """Return the exit code (128 + the signal where one ended it); None while it runs."""
        return self._shell.poll()

    def stop(self, deadline_s: float) -> int:
        """Ask it to stop, kill it when it is still there after the deadline; its exit code."""
        assert self._shell.stdin is not None
        self._shell.stdin.close()
        with suppress(subprocess.TimeoutExpired):
            self._shell.wait(deadline_s)
        # Also where it is gone: a process that it started must not stay.
        with suppress(ProcessLookupError, PermissionError):
            os.killpg(self._shell.pid, signal.SIGKILL)
        return self._shell.wait(KILL_DEADLINE_S)

    def last_line(self) -> str:
        """Return the last line of its log, which says why it ended; "" where there is none."""
        try:
            lines = self.log_file.read_text(errors="replace").split("\n")
        except OSError:
            return ""
        return next((line.strip() for line in reversed(lines) if line.strip()), "")

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self.stop(ABORT_DEADLINE_S)
