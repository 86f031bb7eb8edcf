"""What the users topic says, in a worker: who is forgotten up to when, and whose items are blocked.

A thread hears the topic; the compute thread takes up what was heard between two micro-batches, so
that one micro-batch is decoded and applied by the same commands.
"""

from collections.abc import Collection, Mapping, Sequence
from queue import Empty, SimpleQueue
from time import monotonic

import numpy as np
import numpy.typing as npt
from aiokafka.partitioner import murmur2
from xxhash import xxh3_64_intdigest

from models.vocabulary import item_hash
from pipeline.cluster.records import Record
from pipeline.user_commands import UserCommand, decode_user_command
from pipeline.worker.hot_rows import HotRows

Hashes = npt.NDArray[np.uint64]

ERASE_AT_ONCE = 1000  # users whose rows are looked for in one go
ERASE_BUDGET_S = 0.05  # of each second: micro-batches wait meanwhile


class Users:
    """Commands about users. `hear` may be called by any thread, the rest by the compute thread.

    Args:
        partitions: Partition count of the interactions topic; None: not known.

    Attributes:
        forget_before_ms: By user key, the time before which no event counts; only ever grows.
    """

    def __init__(self, partitions: int | None = None) -> None:
        self._partitions = partitions
        self.forget_before_ms: dict[bytes, int] = {}
        self._blocked: dict[bytes, Hashes] = {}
        # By the key's hash: a null value leaves nothing but its time, and a key may be any size.
        self._record_ms: dict[int, int] = {}
        self._heard: SimpleQueue[tuple[bytes, int, UserCommand]] = SimpleQueue()
        self._forgotten: list[bytes] = []  # in the order in which it was told of them
        self._just_told: set[bytes] = set()  # since the last `erase_rows`
        self._looked_at: dict[int, range] = {}  # by partition, the part of `_forgotten`

    def hear(self, record: Record) -> None:
        """Take one record of the users topic; it holds from the next `take_up` on.

        Raises:
            ValueError: The key is no UTF-8 text or the value is no command.
            RecursionError: The value is nested too deeply.
        """
        command = decode_user_command(record.key, record.value)
        self._heard.put((record.key or b"", record.timestamp, command))

    def take_up(self) -> None:
        """Let hold what was heard so far; of several records of a user the latest by its time.

        A user's commands may come on several partitions, so not in the order of their times.
        """
        while True:
            try:
                key, record_ms, command = self._heard.get_nowait()
            except Empty:
                return
            self._note_forgotten(key, command.forget_before_ms)
            hashed = xxh3_64_intdigest(key)
            if record_ms < self._record_ms.get(hashed, record_ms):
                continue
            self._record_ms[hashed] = record_ms
            if command.blocked_items:
                ids = command.blocked_ids
                self._blocked[key] = np.array([item_hash(item) for item in ids], np.uint64)
            else:
                self._blocked.pop(key, None)

    def _note_forgotten(self, key: bytes, before_ms: int) -> None:
        """Note up to when a user is forgotten; repeats too, but not those that a start reads."""
        known_ms = self.forget_before_ms.get(key, 0)
        is_repeat = before_ms == known_ms and len(self._looked_at) > 0
        if not before_ms or not (before_ms > known_ms or is_repeat):
            return
        self.forget_before_ms[key] = before_ms
        if key not in self._just_told:  # a command may come on every partition of the topic
            self._just_told.add(key)
            self._forgotten.append(key)

    def erase_rows(self, hot: HotRows, owned: Collection[int]) -> dict[int, int]:
        """Erase rows of users who are to be forgotten, until all are or the time is up.

        First those told of while the partitions are here, then the others, newest first: most of
        these were carried out long ago.

        Of the first a null value leaves also where there is no row: a list that a former owner had
        on its way may have come behind the one before.

        Args:
            hot: The rows in use.
            owned: The partitions to look into.

        Returns:
            By partition, how many rows with events were erased; without partitions in which no row
            was touched.
        """
        erased: dict[int, int] = {}
        until_s = monotonic() + ERASE_BUDGET_S
        self._just_told.clear()
        told = len(self._forgotten)
        for partition in owned:
            self._looked_at.setdefault(partition, range(told, told))
        for is_new in (True, False):
            left = [number for number in owned if self._next_part(number, is_new=is_new)]
            left.sort(key=lambda number: len(self._looked_at[number]))
            while left and monotonic() < until_s:
                partition = left.pop(0)
                part = self._next_part(partition, is_new=is_new)
                keys = self._forgotten[part.start : part.stop]
                times = {key: self.forget_before_ms[key] for key in keys}
                absent = self._likely_of(hot, partition, keys) if is_new else None
                touched, number = hot.erase_users(partition, times, absent)
                if touched:
                    erased[partition] = erased.get(partition, 0) + number
                looked = self._looked_at[partition]
                self._looked_at[partition] = range(
                    min(looked.start, part.start), max(looked.stop, part.stop)
                )
                if self._next_part(partition, is_new=is_new):
                    left.append(partition)
        return erased

    def _next_part(self, partition: int, *, is_new: bool) -> range:
        """Return which of the users to look for next in a partition; empty where none is left."""
        looked_at = self._looked_at[partition]
        if is_new:
            end = min(looked_at.stop + ERASE_AT_ONCE, len(self._forgotten))
            return range(looked_at.stop, end)
        return range(max(0, looked_at.start - ERASE_AT_ONCE), looked_at.start)

    def _likely_of(self, hot: HotRows, partition: int, keys: Sequence[bytes]) -> list[bytes]:
        """Return whose lists lie on a partition by Kafka's default partitioner.

        Of none where the rows there show that producers choose by another one: a null value on a
        partition that is not the user's could reach a consumer after the list of a user who is
        back.
        """
        if self._partitions is None:
            return []
        likely = [key for key in keys if self._default_partition(key) == partition]
        if likely and any(
            self._default_partition(key) != partition for key in hot.some_users(partition)
        ):
            return []
        return likely

    def _default_partition(self, key: bytes) -> int:
        assert self._partitions is not None
        number: int = (murmur2(key) & 0x7FFFFFFF) % self._partitions
        return number

    def leave(self, partition: int) -> None:
        """Note that a partition may have other rows when it comes back."""
        self._looked_at.pop(partition, None)

    def blocked(self, users: Mapping[int, Sequence[bytes]]) -> dict[int, Hashes]:
        """Return the blocked items of those users of a micro-batch who have any.

        Args:
            users: Per partition the user keys; they are numbered through.

        Returns:
            By user number, uint64 (n,).
        """
        if not self._blocked:
            return {}
        keys = [key for keys in users.values() for key in keys]
        return {
            user: items
            for user, key in enumerate(keys)
            if (items := self._blocked.get(key)) is not None
        }
