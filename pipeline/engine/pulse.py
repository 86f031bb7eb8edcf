"""The process's own pulse: whether it stood still, and whether work that waits gets done."""

import faulthandler
import threading
import time
from collections.abc import Callable

from pipeline.engine.options import EngineOptions
from pipeline.engine.stop import ExitCode, end_process

# Of the session: a process that stood still for longer may have lost its partitions.
FROZEN_SHARE = 0.8


class Pulse:
    """Ends the process when it was frozen or makes no progress; watches from a thread of its own.

    A frozen process does not know that others took its partitions. Whoever runs first after the
    freeze sees the gap: this thread, or the check before anything is sent.
    """

    period_s = 0.25

    def __init__(self, options: EngineOptions, has_work: Callable[[], bool]) -> None:
        self._frozen_s = FROZEN_SHARE * options.session_timeout_s
        self._watchdog_s = options.watchdog_s
        self._has_work = has_work
        self._beat_s = self._progress_s = time.monotonic()
        self._stopped = threading.Event()

    def start(self) -> None:
        """Begin watching."""
        self._beat_s = self._progress_s = time.monotonic()
        threading.Thread(target=self._run, name="pulse", daemon=True).start()

    def stop(self) -> None:
        """End watching."""
        self._stopped.set()

    def progress(self) -> None:
        """Note that a micro-batch was finished."""
        self._progress_s = time.monotonic()

    def check(self) -> None:
        """End the process if it stood still for so long that its partitions may have new owners."""
        gap_s = time.monotonic() - self._beat_s
        if gap_s > self._frozen_s:
            end_process(
                ExitCode.FROZEN,
                "the process stood still for %.1f s (limit %.1f s): others may own its "
                "partitions. Nothing is lost: start it again.",
                gap_s,
                self._frozen_s,
            )

    def seconds_without_progress(self) -> float:
        """Seconds since work that waits was last finished; 0 while nothing waits."""
        return time.monotonic() - self._progress_s if self._has_work() else 0.0

    def _run(self) -> None:
        while not self._stopped.wait(self.period_s):
            self.check()
            self._beat_s = time.monotonic()
            if not self._has_work():
                self._progress_s = self._beat_s
            elif self._beat_s - self._progress_s > self._watchdog_s:
                faulthandler.dump_traceback(all_threads=True)
                end_process(
                    ExitCode.STALLED,
                    "records wait and none was finished for %.0f s; the stacks of all threads "
                    "are above",
                    self._watchdog_s,
                )
