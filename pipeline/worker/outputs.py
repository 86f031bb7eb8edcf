"""What leaves after a micro-batch: lists, null values that take lists back, dead letters."""

from collections.abc import Mapping, Sequence
from itertools import compress

import numpy as np
import numpy.typing as npt

from pipeline.engine.processor import PartitionResult
from pipeline.worker.batch import MicroBatch
from pipeline.worker.histories import last_of_each
from pipeline.worker.hot_rows import HotRows
from pipeline.worker.ranking import Ranked
from pipeline.worker.users import Users
from pipeline.worker.wire import encode_recommendations

Ints = npt.NDArray[np.int64]


class Outputs:
    """Makes the records of a micro-batch's users.

    Args:
        hot: The rows in use.
        users: Who is forgotten.
        transactional: Whether lists leave in the transaction of their rows.
    """

    def __init__(self, hot: HotRows, users: Users, *, transactional: bool) -> None:
        self._hot = hot
        self._users = users
        self._transactional = transactional

    def look_behind(self, batch: MicroBatch) -> dict[int, list[bytes]]:
        """See to users of whom the batch holds nothing but forgotten events.

        Such an event may have counted before a crash, and its list may have left. Where the row
        holds less, the user is answered again. Where there is none, the list is to be taken back.

        Returns:
            By partition, the users without a row.
        """
        without_row: dict[int, list[bytes]] = {}
        behind: dict[int, list[bytes]] = {}
        for partition, read in batch.forgotten_users.items():
            keys = sorted(read.keys() - set(batch.users[partition]))
            slots = self._hot.find(partition, keys)  # may make room, so before the heads are read
            heads, forget_of = self._hot.heads, self._users.forget_before_ms
            has_row = heads["event_count"][slots] > 0
            is_behind = has_row & (heads["offset"][slots] < [read[key] for key in keys])
            # One that is to be erased, still, is by `refresh`, with a null value.
            is_behind &= heads["forgotten_before_ms"][slots] >= [forget_of[key] for key in keys]
            without_row[partition] = list(compress(keys, (~has_row).tolist()))
            behind[partition] = list(compress(keys, is_behind.tolist()))
        if any(behind.values()):
            batch.add_users(behind)
        return without_row

    def results(
        self,
        batch: MicroBatch,
        slots: Ints,
        ranked: Ranked,
        is_answered: npt.NDArray[np.bool_],
        without_row: Mapping[int, Sequence[bytes]],
        version: int,
    ) -> list[PartitionResult]:
        """Mark the rows as moved and put the outputs into their wire form.

        Args:
            batch: The micro-batch.
            slots: int64 (u,), the users' rows.
            ranked: Their lists.
            is_answered: bool (u,), whose lists leave.
            without_row: By partition, users whose lists are taken back, as `look_behind` found.
            version: Of the release that serves; 0: none.
        """
        is_outrun = self._is_outrun(batch, slots)
        results, first = [], 0
        for partition, keys in batch.users.items():
            last = first + len(keys)
            at, answered = slots[first:last], is_answered[first:last]
            self._hot.heads["partition"][at[answered]] = partition
            # Also where every event was a repeat: a kill between two confirmations
            # must lose no output.
            self._hot.mark_moved(partition, at[answered])
            outputs = encode_recommendations(
                partition, keys, self._hot.heads[at], ranked, first, version
            )
            takes_back = self._hot.take_back(at) | is_outrun[first:last]
            if takes_back.any():
                answered_by = zip(outputs, answered.tolist(), takes_back.tolist(), strict=True)
                outputs = [
                    record
                    for one, is_sent, is_second in answered_by
                    for record in (((one[0], None), one) if is_second else (one,))
                    if is_sent
                ]
            elif self._transactional:
                outputs = list(compress(outputs, answered.tolist()))
            outputs += [(key, None) for key in without_row.get(partition, ())]
            letters = [dead.letter for dead in batch.dead.get(partition, ())]
            newest = int(self._hot.heads["offset"][at].max(initial=-1))
            moved = self._hot.moved_rows(partition)
            begin, end = np.searchsorted(batch.user, (first, last))
            record_ms = batch.record_ms[begin:end]
            results.append(PartitionResult(partition, outputs, letters, moved, newest, record_ms))
            first = last
        return results

    def _is_outrun(self, batch: MicroBatch, slots: Ints) -> npt.NDArray[np.bool_]:
        """Tell of whom a list may have left that reflects more than the row does now.

        The user is to be forgotten, and a record behind the row's offset did not count: it may have
        counted before a crash, and consumers keep the list of the highest offset. Not so
        where lists leave with their rows: then the row outlived the crash, and was erased.
        """
        if self._transactional or not self._users.forget_before_ms:
            return np.zeros(len(slots), np.bool_)
        newest = np.full(len(slots), -1)
        last = last_of_each(batch.user)
        newest[batch.user[last]] = batch.offset[last]
        keys = [key for keys in batch.users.values() for key in keys]
        first = 0
        for partition, users in batch.users.items():
            if forgotten := batch.forgotten_users.get(partition):
                read = np.array([forgotten.get(key, -1) for key in users], np.int64)
                at = slice(first, first + len(users))
                newest[at] = np.maximum(newest[at], read)
            first += len(users)
        is_outrun = self._hot.heads["offset"][slots] < newest
        for user in np.flatnonzero(is_outrun).tolist():
            is_outrun[user] = keys[user] in self._users.forget_before_ms
        return is_outrun
