"""What the end of a worker process means, and whether and when to start it again."""

import signal
from collections.abc import Mapping

from pipeline.engine.stop import ExitCode

FIRST_PAUSE_S = 1.0
LONGEST_PAUSE_S = 30.0
STEADY_S = 60.0  # after so long a run the pauses begin anew

MEANINGS: Mapping[int, str] = {
    0: "stopped by a signal, or done",
    1: "the line before this one says why",
    2: "wrong arguments or settings",
    ExitCode.STOP_DEADLINE: "its stop took longer than worker.stop_deadline_s",
    ExitCode.BUG: "an unexpected error, its traceback is above",
    ExitCode.HOLE: "source offsets are missing",
    ExitCode.RESTORE: "rows were not restored in time",
    ExitCode.FROZEN: "it stood still for longer than its session",
    ExitCode.CHECKPOINT: "a checkpoint was refused or not confirmed",
    ExitCode.DAMAGED_ROW: "a local row is damaged and will be restored from the changelog",
    ExitCode.STALLED: "records waited and none was finished, or its start took too long",
    ExitCode.STORE: "the local copy of the rows cannot be used",
    ExitCode.KAFKA: "Kafka did not answer or refused",
    ExitCode.TOPICS: "the interactions topic is gone or has other partitions",
    ExitCode.NAME_TAKEN: "another worker has its kafka.group_instance_id",
}
FINAL = frozenset({2, ExitCode.TOPICS, ExitCode.NAME_TAKEN})


def meaning(code: int) -> str:
    """Say in a few words what an exit code means; minus the signal's number where one ended it."""
    if code < 0:
        known = -code in set(signal.Signals)  # a real-time signal has no name
        return f"killed by {signal.Signals(-code).name if known else f'signal {-code}'}"
    return f"exit code {code}: {MEANINGS.get(code, 'unknown')}"


def is_final(code: int, *, was_ready: bool) -> bool:
    """Tell whether starting the process again cannot help.

    Args:
        code: Its exit code.
        was_ready: Whether a start of it was ever through. If not, an error is one that one process
            alone would have ended with: something was never right, and whoever started it should
            know. A signal is no such error, nor is a start that was waited for in vain.
    """
    return code in FINAL or (code > 0 and code != ExitCode.STALLED and not was_ready)


def pause_after(pause_before_s: float, ran_s: float) -> float:
    """Return how long to wait before the next start, so that what ends at once burns no CPU.

    Args:
        pause_before_s: The pause before the start that ended now; 0 for the first one.
        ran_s: How long it ran.
    """
    if ran_s >= STEADY_S:
        return FIRST_PAUSE_S
    return min(max(FIRST_PAUSE_S, 2 * pause_before_s), LONGEST_PAUSE_S)
