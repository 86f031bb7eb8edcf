"""What the users topic says, in a worker: who is forgotten up to when, and whose items are blocked.

A thread hears the topic; the compute thread takes up what was heard between two micro-batches, so
that one micro-batch is decoded and applied by the same commands.
"""

from collections.abc import Collection, Mapping, Sequence
from queue import Empty, SimpleQueue
from time import monotonic

import numpy as np
import numpy.typing as npt

from models.vocabulary import item_hash
from pipeline.cluster.clients import Record
from pipeline.user_commands import UserCommand, decode_user_command
from pipeline.worker.hot_rows import HotRows

Hashes = npt.NDArray[np.uint64]

ERASE_AT_ONCE = 1000  # users whose rows are looked for in one go
ERASE_BUDGET_S = 0.05  # of each second: micro-batches wait meanwhile


class Users:
    """Commands about users. `hear` may be called by any thread, the rest by the compute thread.

    Attributes:
        forget_before_ms: By user key, the time before which no event counts; only ever grows.
    """

    def __init__(self) -> None:
        self.forget_before_ms: dict[bytes, int] = {}
        self._blocked: dict[bytes, Hashes] = {}
        self._record_ms: dict[bytes, int] = {}
        self._heard: SimpleQueue[tuple[bytes, int, UserCommand]] = SimpleQueue()
        self._forgotten: list[bytes] = []  # in the order in which they became so
        self._looked_at: dict[int, int] = {}  # by partition, so many of them

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
            if command.forget_before_ms > self.forget_before_ms.get(key, 0):
                self.forget_before_ms[key] = command.forget_before_ms
                self._forgotten.append(key)
            if record_ms < self._record_ms.get(key, record_ms):
                continue
            self._record_ms[key] = record_ms
            if command.blocked_items:
                ids = command.blocked_ids
                self._blocked[key] = np.array([item_hash(item) for item in ids], np.uint64)
            else:
                self._blocked.pop(key, None)

    def erase_rows(self, hot: HotRows, owned: Collection[int]) -> dict[int, int]:
        """Erase rows of users who are to be forgotten, until all are or the time is up.

        Args:
            hot: The rows in use.
            owned: The partitions to look into; where the least was looked at comes first.

        Returns:
            By partition, how many were erased; without those of none.
        """
        erased: dict[int, int] = {}
        until_s = monotonic() + ERASE_BUDGET_S
        for partition in sorted(owned, key=lambda number: self._looked_at.get(number, 0)):
            at = self._looked_at.get(partition, 0)
            while at < len(self._forgotten) and monotonic() < until_s:
                keys = self._forgotten[at : at + ERASE_AT_ONCE]
                times = {key: self.forget_before_ms[key] for key in keys}
                if number := hot.erase_users(partition, times):
                    erased[partition] = erased.get(partition, 0) + number
                at += len(keys)
            self._looked_at[partition] = at
        return erased

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
