"""How a worker ends itself when going on would lose or corrupt something.

Nothing may escape the body of a Faust agent: Faust would acknowledge what was in work and go on (a
crashed batch, and silently everything behind it, would be lost). So the process ends at once, as if
it had been killed: what was not committed is read again by whoever owns the partition next.
"""

import asyncio
import enum
import logging
import os
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from typing import NoReturn

from aiokafka.errors import KafkaError

from pipeline.cluster.rights import remedy
from state.errors import StateError

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
    """A local row is damaged; its partition's local copy was removed, the next start restores
    it. Or a row is none that a release can have made."""
    STALLED = 77
    """The watchdog saw work waiting and no progress, or a start took too long."""
    STORE = 78
    """The local copy of the rows cannot be used; the log says why and what to do."""
    KAFKA = 79
    """Kafka did not answer or refused; nothing is lost, a later start goes on."""
    TOPICS = 80
    """The interactions topic is gone or has other partitions than when the worker started."""
    NAME_TAKEN = 81
    """Another worker runs under the same `kafka.group-instance-id`."""


@contextmanager
def ending_on_error(doing: str) -> Iterator[None]:
    """Let nothing but a cancellation escape: anything else ends the process, see `end_by`."""
    try:
        yield
    except asyncio.CancelledError:
        raise
    except BaseException as error:
        end_by(error, doing)


def end_by(error: BaseException, doing: str) -> NoReturn:
    """End the process because of an error: one line where an operator can act on it.

    Anything else is a bug and leaves its traceback.
    """
    said = " ".join(str(error).split()) or type(error).__name__
    if isinstance(error, KafkaError):
        name = type(error).__name__
        end_process(
            ExitCode.KAFKA,
            "%s: Kafka did not answer or refused (%s: %s). Nothing of it was acknowledged; %s, "
            "then start the worker again.",
            doing,
            name,
            said,
            remedy(error),
        )
    if isinstance(error, StateError):
        end_process(ExitCode.STORE, "%s: %s", doing, said)
    end_process(ExitCode.BUG, "%s failed; nothing of it was acknowledged", doing, exc_info=error)


def end_process(
    code: ExitCode, message: str, *args: object, exc_info: BaseException | None = None
) -> NoReturn:
    """Log one line and end the process at once: no clean-up may acknowledge anything."""
    logger.critical(message, *args, exc_info=exc_info)
    for handler in logging.getLogger().handlers:
        handler.flush()
    sys.stderr.flush()
    os._exit(code)
