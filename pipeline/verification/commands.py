"""What the users topic says of each user, and from when on workers must have heard it.

A command says what holds, never what held before it: compaction may have removed that. So what was
made before the newest command of a user was surely heard is not judged by any.
"""

import math
from collections.abc import Callable, Collection, Iterable, Iterator, Mapping
from dataclasses import dataclass

from pipeline.cluster.records import Record
from pipeline.user_commands import UserCommand, decode_user_command, newest_commands

HEARD_WITHIN_MS = 600_000
"""How long after a record a worker may not have heard of it: for clocks, and for what is late."""


@dataclass(frozen=True, slots=True)
class Told:
    """What holds of a user whom the users topic names.

    Attributes:
        forget_before_ms: The user's events from before this time never happened.
        blocked: Ids of the items that are not to be recommended to the user.
        record_ms: Timestamp of the record that says so.
        is_lowered: The user was to be forgotten up to a later time by a record that compaction has
            removed, or may have been. Workers that have read it keep to it until they start again.
        is_settled: Every worker had heard it when the rows were read.
    """

    forget_before_ms: int
    blocked: frozenset[str]
    record_ms: int
    is_lowered: bool
    is_settled: bool

    @property
    def settled_ms(self) -> float:
        """From when on what is made has to keep to it; infinite where that cannot be known."""
        return math.inf if self.is_lowered else self.record_ms + HEARD_WITHIN_MS

    @property
    def forgets(self) -> bool:
        """Whether a state of the user may have been deleted for it."""
        return self.forget_before_ms > 0 or self.is_lowered


def read_users(
    records: Iterable[Record],
    forgotten_in_rows: Callable[[Collection[bytes]], Mapping[bytes, int]],
    now_ms: int,
) -> dict[bytes, Told]:
    """Return what holds of each user that the topic names, by key.

    Args:
        records: The users topic.
        forgotten_in_rows: Up to what time rows say that their users are forgotten, of users that
            have one. Where compaction has removed records, that may be what is left of them.
        now_ms: When the rows were read.
    """
    records = list(records)
    has_gaps, commands = _has_gaps(records), list(_commands(records))
    newest = newest_commands(commands)
    in_rows = forgotten_in_rows(newest.keys()) if has_gaps else {}
    told: dict[bytes, Told] = {}
    for key, (record, command) in newest.items():
        before_ms = command.forget_before_ms
        is_traceless = has_gaps and not before_ms and key not in in_rows
        is_lowered = is_traceless or before_ms < in_rows.get(key, 0)
        told[key] = Told(
            forget_before_ms=before_ms,
            blocked=frozenset(command.blocked_ids),
            record_ms=record.timestamp,
            is_lowered=is_lowered,
            is_settled=not is_lowered and record.timestamp + HEARD_WITHIN_MS <= now_ms,
        )
    return told


def changed_users(before: Mapping[bytes, Told], after: Mapping[bytes, Told]) -> frozenset[bytes]:
    """Return the users of whom something else holds than did before."""
    return frozenset(key for key, told in after.items() if before.get(key) != told)


def _has_gaps(records: Iterable[Record]) -> bool:
    """Tell whether records are gone."""
    next_offset: dict[int, int] = {}
    has_gaps = False
    for record in records:
        has_gaps |= record.offset != next_offset.get(record.partition, 0)
        next_offset[record.partition] = record.offset + 1
    return has_gaps


def _commands(records: Iterable[Record]) -> Iterator[tuple[Record, UserCommand]]:
    for record in records:
        try:
            yield record, decode_user_command(record.key, record.value)
        except (ValueError, RecursionError):
            continue  # workers log and skip it
