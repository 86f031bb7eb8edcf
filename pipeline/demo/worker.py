"""The worker of a demo: a real one, in a process of its own, watched through its /metrics."""

import sys
import time
from pathlib import Path
from typing import Self

from pipeline.demo.figures import DELAY, Reading, is_ready, take_reading
from pipeline.demo.processes import ABORT_DEADLINE_S, ChildProcess
from pipeline.settings import Settings, settings_flags

LOOK_PERIOD_S = 0.25
STOP_MARGIN_S = 5.0
EVENTS = "lrurec_events_total"
DELAY_COUNT = DELAY + "_count"


class DemoWorker:
    """`python -m pipeline worker` with given settings; gone at the end of a `with` block.

    All waiting here is without end: a worker that ends is for the guard to notice, one that makes
    no progress ends itself.

    Args:
        settings: All settings, with a port for metrics.
        log_file: Takes what it writes.
    """

    def __init__(self, settings: Settings, log_file: Path) -> None:
        self._settings = settings
        flags = settings_flags(settings, complete=True)
        command = [sys.executable, "-m", "pipeline", "worker", *flags]
        self._process = ChildProcess(command, log_file)

    def why_ended(self) -> str | None:
        """Return None while it runs, else what its end was like."""
        code = self._process.poll()
        if code is None:
            return None
        last = self._process.last_line()
        said = f", which ends: {last}" if last else ""
        log_file = self._process.log_file
        return f"the worker has ended with exit code {code}; its log: {log_file}{said}"

    def wait_until_ready(self) -> Reading:
        """Wait until its partitions flow.

        Returns:
            The reading of a worker that has done nothing, at the last moment at which it was not
            ready: rates that begin there err on the low side.
        """
        began_s = time.monotonic()
        while not is_ready(self._settings.metrics.worker_port):
            began_s = time.monotonic()
            time.sleep(LOOK_PERIOD_S)
        return Reading(at_s=began_s, series={})

    def read(self) -> Reading:
        """Wait for an answer from its /metrics."""
        while True:
            reading = take_reading(self._settings.metrics.worker_port)
            if reading is not None:
                return reading
            time.sleep(LOOK_PERIOD_S)

    def read_at_rest(self) -> Reading:
        """Wait until its last answers have left and are counted."""
        before = self.read()
        while True:
            time.sleep(LOOK_PERIOD_S)
            reading = self.read()
            if reading.total(DELAY_COUNT) == before.total(DELAY_COUNT):
                return reading
            before = reading

    def stop(self) -> int:
        """Tell it to stop and wait; its exit code."""
        return self._process.stop(self._settings.worker.stop_deadline_s + STOP_MARGIN_S)

    def __enter__(self) -> Self:
        return self

    def __exit__(self, *_: object) -> None:
        self._process.stop(ABORT_DEADLINE_S)
