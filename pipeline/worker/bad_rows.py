"""State rows that must not be used: the process ends, and the line says whose they are."""

from typing import NoReturn

import numpy as np
import numpy.typing as npt

from models.magnitudes import LARGEST
from models.transfers import to_host
from pipeline.engine.stop import ExitCode, end_process
from pipeline.worker.batch import MicroBatch
from pipeline.worker.hot_rows import HotRows
from pipeline.worker.ranking import Ranked
from state.store import StateStore


def end_by_damaged_row(store: StateStore, changelog: str, partition: int, key: bytes) -> NoReturn:
    """End the process because of a row whose bytes are not those that were written."""
    store.destroy(partition)
    end_process(
        ExitCode.DAMAGED_ROW,
        "partition %d: a local state row is damaged (checksum). The partition's local copy was "
        "removed; start the worker again and it is restored from the changelog. Where it says "
        "so again, the changelog's row is damaged too: send a null value with key %a to "
        "partition %d of %s, and the user begins anew.",
        partition,
        key,
        partition,
        changelog,
    )


def require_numbers(
    hot: HotRows,
    changelog: str,
    version: int,
    batch: MicroBatch,
    slots: npt.NDArray[np.int64],
    ranked: Ranked,
) -> None:
    """End where a user's state is none that a release makes: the lists would be of nothing.

    The weights were seen to when they were loaded. `version` is that of the release that serves.
    """
    suspects = np.flatnonzero(~np.isfinite(ranked.scores[:, 0]))
    if not len(suspects):
        return
    # A list without a best score may also be that of a user from whom all items are kept.
    hidden = hot.hidden[hot.index(slots[suspects])]
    [largest] = to_host(hidden.abs().flatten(1).amax(1))
    wrong = suspects[np.isnan(ranked.scores[suspects, 0]) | ~(largest <= LARGEST)]
    if not len(wrong):
        return
    users = [(partition, key) for partition, keys in batch.users.items() for key in keys]
    partition, key = users[wrong[0]]
    end_process(
        ExitCode.DAMAGED_ROW,
        "partition %d: the state of user %a gives no numbers as scores, which no state does that "
        "a release has made: something else wrote to partition %d of %s. Send a null value with "
        "that key there, start the worker again, and the user begins anew. Where it says so of one "
        "user after another, announce another release than %d.",
        partition,
        key,
        partition,
        changelog,
        version,
    )
