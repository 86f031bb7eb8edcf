"""State rows against the log: every fact of a row, and which hidden state it must have."""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np

from pipeline.verification.changelog import Row, Rows
from pipeline.verification.commands import Told
from pipeline.verification.doubt import doubtful_count, due_count, least_count, most_lacking
from pipeline.verification.oracle import LogOracle, UserHistory, UserOf
from pipeline.verification.report import Findings, Kind

Problem = tuple[str, object, object]
"""What is wrong, what was expected, and what there is."""

TO_BE_FORGOTTEN = "of a user who was to be forgotten"
"""How the first word of a problem goes on where it is that somebody is not forgotten."""


@dataclass(frozen=True, slots=True)
class StateTask:
    """A hidden state to compute: by the row's weights over events start..stop-1 of the log."""

    user: UserOf
    row: Row
    start: int
    stop: int


class RowCheck:
    """Holds rows to their users' events.

    Args:
        oracle: What the log says.
        rows: What the changelog says.
        least_ring: No row remembers fewer items than this, unless its user has fewer.
        findings: Takes what is wrong.

    Attributes:
        missing: Events below the committed offsets that a state lacks.
        unverifiable: Users whose row rests on events that are gone, or who are being forgotten.
        unforgotten: Rows that hold what was to be forgotten.
        tasks: Hidden states to compute.
    """

    def __init__(
        self, oracle: LogOracle, rows: Rows, *, least_ring: int, findings: Findings
    ) -> None:
        self._oracle = oracle
        self._rows = rows
        self._least_ring = least_ring
        self._findings = findings
        self.missing = self.unforgotten = 0
        self.unverifiable: set[UserOf] = set()
        self.tasks: list[StateTask] = []

    def run(self) -> None:
        """Check every user and every row."""
        for user, history in self._oracle.users.items():
            self._check_progress(user, history)
        for user, row in self._rows.newest.items():
            problems = self._check(user, row)
            if problems:
                self._judge(user, row, problems)

    def _judge(self, user: UserOf, row: Row, problems: Sequence[Problem]) -> None:
        if self._is_excused(user, row, problems):
            self.unverifiable.add(user)
            row.gone = None
            return
        self._drop_task(user)
        self.unforgotten += any(what.endswith(TO_BE_FORGOTTEN) for what, _, _ in problems)
        for nth, (what, expected, got) in enumerate(problems):
            count = int(nth == 0)  # a row is wrong once
            self._findings.add(Kind.ROW, user[0], row.offset, what, expected, got, count=count)

    def _is_excused(self, user: UserOf, row: Row, problems: Sequence[Problem]) -> bool:
        """Tell whether all problems may come of events that repeat ids of gone ones.

        A hidden state is computed all the same where it began behind those events.
        """
        history = self._oracle.users.get(user)
        if history is None or not self._is_open(user, row):
            return False
        doubtful, reached = doubtful_count(history), history.count_up_to(row.offset)
        count, size = int(row.head["event_count"]), len(row.head["ring"])
        excused = {
            "offset": row.offset in history.repeats,
            "event_count": doubtful > 0 and self._may_count(user, row, history, reached),
            "ring": doubtful > max(0, reached - size),
            "event_ids": doubtful >= reached,
        }
        if not all(excused.get(what.split(maxsplit=1)[0], False) for what, _, _ in problems):
            return False
        if doubtful > reached - (count - row.started_at):
            self._drop_task(user)
        return True

    def _drop_task(self, user: UserOf) -> None:
        """Compute no state of the user that was checked last."""
        if self.tasks and self.tasks[-1].user == user:
            self.tasks.pop()

    def _may_count(self, user: UserOf, row: Row, history: UserHistory, reached: int) -> bool:
        """Tell whether a row may count as many events as it does, for what is gone."""
        count, log = int(row.head["event_count"]), self._oracle.partitions[user[0]]
        is_too_many = count > reached + len(history.repeats)
        if is_too_many and not log.lacks_events:
            return False
        return count >= least_count(history, most_lacking(history, row), reached)

    def _is_open(self, user: UserOf, row: Row) -> bool:
        """Tell whether the row may rightly count other events than the log holds."""
        history = self._oracle.users[user]
        lacks_events = self._oracle.partitions[user[0]].lacks_events
        return lacks_events or most_lacking(history, row) > 0

    def _is_in_flux(self, told: Told | None) -> bool:
        """Tell whether the user's state may be deleted just now."""
        return told is not None and told.forgets and not told.is_settled

    def _check_progress(self, user: UserOf, history: UserHistory) -> None:
        """Find events that were answered for and that the row has not reached."""
        partition, row = user[0], self._rows.newest.get(user)
        due = due_count(history, self._oracle.partitions[partition], row)
        if not due or user in self._rows.deleted or self._is_in_flux(self._told(user)):
            return
        if row is not None and row.damaged:
            return
        reached = history.deletable if row is None else history.count_up_to(row.offset)
        if reached < due:
            self.missing += due - reached
            self._findings.add(
                Kind.MISSING,
                partition,
                history.offsets[reached],
                f"{due - reached} events are committed and not in their user's state",
                f"a row at offset {history.offsets[due - 1]} or later",
                "no row" if row is None else f"a row at offset {row.offset}",
                count=due - reached,
            )

    def _check(self, user: UserOf, row: Row) -> list[Problem]:
        """Return (what, expected, got) of everything that is wrong with a row; note its task."""
        if row.damaged:
            return [("row", "the bytes that were written", "a wrong length or checksum")]
        partition, head = user[0], row.head
        log, history = self._oracle.partitions.get(partition), self._oracle.users.get(user)
        if log is None:
            return [("partition", "one that the interactions have", partition)]
        if int(head["partition"]) != partition:
            return [("partition", partition, int(head["partition"]))]
        if self._is_in_flux(self._told(user)):
            self.unverifiable.add(user)
            return []
        problems = self._check_forgotten(user, row)
        reached = 0 if history is None else history.count_up_to(row.offset)
        if history is None or not history.ends_at(reached, row.offset):
            if row.offset < log.first or log.lacks_middle:
                self.unverifiable.add(user)
                return problems
            what = self._words("offset", user, row.offset in self._oracle.forgotten.get(user, ()))
            return [*problems, (what, "that of an event of the user that counts", row.offset)]
        count = int(head["event_count"])
        gone, lacking = count - reached, most_lacking(history, row)
        problems += self._check_time(row, history, reached)
        if log.lacks_middle and gone > 0:
            self.unverifiable.add(user)
            return problems
        if (gone > 0 and not log.lacks_front) or gone < -lacking:
            is_open = self._is_open(user, row)
            least = least_count(history, lacking, reached) if is_open else reached
            if count < least:
                self._miss_within(partition, row, least - count)
            return [*problems, (self._words("event_count", user, gone > 0), reached, count)]
        row.gone = gone
        return [
            *problems,
            *self._check_ring(row, history, count),
            *self._check_event_ids(row, history, reached),
            *self._check_state(user, row, reached),
        ]

    def _told(self, user: UserOf) -> Told | None:
        return self._oracle.told.get(user[1])

    def _check_forgotten(self, user: UserOf, row: Row) -> list[Problem]:
        """Check that the row was begun when its user was forgotten, if the user was to be."""
        told = self._told(user)
        expected = 0 if told is None else told.forget_before_ms
        got = int(row.head["forgotten_before_ms"])
        if got == expected:
            return []
        return [(self._words("forgotten_before_ms", user, got < expected), expected, got)]

    def _words(self, what: str, user: UserOf, is_unforgotten: bool) -> str:
        """Name a problem, and tell where it is that a user is not forgotten."""
        told = self._told(user)
        is_unforgotten = is_unforgotten and told is not None and told.forget_before_ms > 0
        return f"{what} {TO_BE_FORGOTTEN}" if is_unforgotten else what

    def _miss_within(self, partition: int, row: Row, count: int) -> None:
        self.missing += count
        self._findings.add(
            Kind.MISSING,
            partition,
            row.offset,
            f"{count} events at or below this offset are not in their user's state",
            f"{int(row.head['event_count']) + count} events",
            int(row.head["event_count"]),
            count=count,
        )

    def _check_time(self, row: Row, history: UserHistory, reached: int) -> list[Problem]:
        expected, got = history.times_ms[reached - 1], int(row.head["timestamp_ms"])
        return [] if got == expected else [("timestamp_ms", expected, got)]

    def _check_ring(self, row: Row, history: UserHistory, count: int) -> Iterator[Problem]:
        """Compare the remembered items, event by event; the i-th ever lies in slot i % ring.

        The oldest slots of a row may be empty where a ring was shorter before.
        """
        assert row.gone is not None  # worked out before
        ring = row.head["ring"]
        size = len(ring)
        kept = min(count, size)
        slots = np.arange(count - kept, count) % size
        got = ring[slots]
        filled = np.flatnonzero(got)
        empty = int(filled[0]) if len(filled) else kept
        first = count - kept + empty  # the event that the oldest filled slot is of
        if count - first < min(count, self._least_ring):
            yield "items in the ring", f"at least {min(count, self._least_ring)}", count - first
        if kept < size and ring[count:].any():
            yield "slots of the ring", f"nothing beyond {count}", "more"
        first = max(first, row.gone)  # older ones are not in the log any more
        expected = history.item_array()[first - row.gone : count - row.gone]
        got = ring[np.arange(first, count) % size]
        for nth in np.flatnonzero(expected != got)[:1].tolist():
            slot = (first + nth) % size
            yield f"ring slot {slot} (event {first + nth})", expected[nth], got[nth]

    def _check_event_ids(self, row: Row, history: UserHistory, reached: int) -> Iterator[Problem]:
        assert row.gone is not None  # worked out before
        slots = row.head["event_ids"].tolist()
        got = [event_id for event_id in slots if event_id]
        expected = history.last_event_ids(max(0, -row.gone), reached, len(slots))
        older = len(got) - len(expected) if row.gone > 0 else 0
        if got[max(0, older) :] != expected or any(slots[len(got) :]):
            yield "event_ids", expected, slots

    def _check_state(self, user: UserOf, row: Row, reached: int) -> Iterator[Problem]:
        """Check what can be said of the hidden state without computing; note what is to compute."""
        assert row.gone is not None  # worked out before
        head, count = row.head, reached + row.gone
        start = row.started_at
        if not row.weights_id:
            for name in ("model_version", "last_item"):
                if head[name]:
                    yield f"{name} of a row without weights", 0, int(head[name])
            if row.hidden.any():
                yield "hidden state of a row without weights", "zero", "something else"
            if not 0 <= start <= count:
                yield "started_at", f"from 0 to {count}", start
            return
        latest = count - min(count, self._least_ring)
        if not 0 <= start <= latest:
            yield "started_at", f"from 0 to {latest}", start
        elif start < row.gone:
            self.unverifiable.add(user)
        else:
            self.tasks.append(StateTask(user, row, start - row.gone, reached))
