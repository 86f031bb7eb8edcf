"""How a worker ends itself when going on would lose or corrupt something.

Nothing may escape the body of a Faust agent: Faust would acknowledge what was in work and go on (a
crashed batch, and silently everything behind it, would be lost). So the process ends at once, as if
it had been
killed: what was not committed is read again by whoever owns the partition next.
"""

import enum
import logging
import os
import sys
from typing import NoReturn

logger = logging.getLogger(__name__)


class ExitCode(enum.IntEnum):
    """Exit codes of a worker, for supervisors and tests."""

    STOP_DEADLINE = 69
    """A graceful stop took longer than its deadline; what was in flight is read again."""
    BUG = 70
    """An unexpected error in the pipeline; its traceback is in the log."""
    HOLE = 72
    """The delivered source offsets have a hole."""
    RESTORE = 73
    """A partition's rows could not be restored from the changelog."""
    FROZEN = 74
    """The process was frozen longer than its session: another worker may own its partitions."""
    CHECKPOINT = 75
    """A checkpoint was refused (another worker owns the partition) or could not be confirmed."""
    DAMAGED_ROW = 76
    """A local row is damaged; its partition's local copy was removed, the next start restores "
    "it."""
    STALLED = 77
    """The watchdog saw work waiting and no progress."""


def end_process(code: ExitCode, message: str, *args: object, exc_info: bool = False) -> NoReturn:
    """Log one line and end the process at once: no clean-up may acknowledge anything."""
    logger.critical(message, *args, exc_info=exc_info)
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
    os._exit(code)
