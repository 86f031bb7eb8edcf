"""How long a worker's start may take, and its end where it takes longer."""

import faulthandler
import threading
import time

from pipeline.engine.stop import ExitCode, end_process
from pipeline.settings import Settings


def start_deadline_s(settings: Settings) -> float:
    """Return how long a start may take until only restores are left to do."""
    return settings.kafka.connect_timeout_s + settings.worker.restore_deadline_s


class StartWatch:
    """Ends the process where its start takes too long; watches from a thread of its own.

    What a start waits for may never come: a folder of releases whose server is gone, a group that
    Kafka never lets it join.

    Args:
        settings: Those of the worker.
    """

    def __init__(self, settings: Settings) -> None:
        self._deadline_s = start_deadline_s(settings)
        self._begun_s = time.monotonic()
        self._over = threading.Event()
        threading.Thread(target=self._run, name="start", daemon=True).start()

    def over(self) -> None:
        """Watch no longer: it is through, or has failed."""
        self._over.set()

    def seconds(self) -> float | None:
        """Seconds since it began; None once it is over."""
        return None if self._over.is_set() else time.monotonic() - self._begun_s

    def _run(self) -> None:
        if self._over.wait(self._deadline_s):
            return
        faulthandler.dump_traceback(all_threads=True)
        end_process(
            ExitCode.STALLED,
            "the start took longer than %g s (kafka.connect-timeout-s and "
            "worker.restore-deadline-s); the stacks of all threads are above. See whether Kafka "
            "answers and the folder of the releases can be read, then start the worker again.",
            self._deadline_s,
        )
