"""Recommendations against the log and the releases that they name."""

from collections.abc import Collection, Mapping
from dataclasses import dataclass

import msgspec

from pipeline.cluster.records import Record
from pipeline.verification.changelog import Row, Rows
from pipeline.verification.commands import HEARD_WITHIN_MS, Told
from pipeline.verification.doubt import due_count, most_lacking
from pipeline.verification.lists import ListLog, Output, OutputRules
from pipeline.verification.oracle import LogOracle, UserHistory, UserOf, hash_of
from pipeline.verification.releases import KnownRelease
from pipeline.verification.report import Findings, Kind
from pipeline.verification.rows import TO_BE_FORGOTTEN

Problem = tuple[Kind, str, object, object]
"""What kind of wrong, what, what was expected, and what there is."""


@dataclass(slots=True)
class _Answer:
    """What is known of the outputs of one user.

    Attributes:
        offset: The highest event that an output reflects since the last null value: what a
            consumer holds; -1 for none.
        place: Offset of the last output in its own topic.
        at_row: The last output at the offset of the user's row, and the indices of its items; None
            where it is among the lists to compute anew already.
        is_at_row: Whether there is one at that offset.
        is_listed: Whether an output there has the items that the row says were recommended.
    """

    offset: int = -1
    place: int = -1
    at_row: tuple[Output, list[int]] | None = None
    is_at_row: bool = False
    is_listed: bool = False


class OutputCheck:
    """Holds recommendations, one after the other, to the log and to their releases.

    Args:
        oracle: What the log says.
        rows: What the changelog says; its rows were checked before.
        by_version: Announced releases.
        rules: See there.
        findings: Takes what is wrong.
        now_ms: When the users topic was read.

    Attributes:
        checked: Recommendations looked at.
        unverifiable: Those that rest on what is gone or were made before their user's command was
            surely heard, and users whose answer may have been removed.
        unforgotten: Those that reflect what was to be forgotten.
        lists: By weights id, the lists to compute anew.
    """

    def __init__(
        self,
        oracle: LogOracle,
        rows: Rows,
        by_version: Mapping[int, KnownRelease],
        rules: OutputRules,
        findings: Findings,
        now_ms: int,
    ) -> None:
        self._oracle = oracle
        self._rows = rows
        self._new_from_ms = now_ms - HEARD_WITHIN_MS  # a command of now can hold for later ones
        self._by_version = by_version
        self._rules = rules
        self._findings = findings
        self._read = msgspec.json.Decoder(Output).decode
        self._answers: dict[UserOf, _Answer] = {}
        self._ahead: list[tuple[int, int]] = []
        self._unheard: list[tuple[int, int, int]] = []
        self._with_unheard: list[Output] = []
        self._with_excluded: list[Output] = []
        self._new: list[tuple[UserOf, int, Problem]] = []
        self._last_early: dict[UserOf, Output] = {}
        self._log_is_whole = not any(log.lacks_events for log in oracle.partitions.values())
        self.checked = self.unverifiable = self.unforgotten = 0
        self.lists: dict[int, ListLog] = {}

    def take(self, record: Record) -> None:
        """Check one recommendation; a null one takes back those before."""
        user = record.partition, record.key or b""
        if record.value is None:
            self._last_early.pop(user, None)
            if user in self._answers:
                self._answers[user].offset = -1
                self._answers[user].place = record.offset
            return
        self.checked += 1
        try:
            output = self._read(record.value)
        except (ValueError, RecursionError) as error:  # of msgspec, of no UTF-8, of deep nesting
            what = f"value of the recommendation at offset {record.offset} of its topic"
            self._findings.add(
                Kind.OUTPUT, record.partition, -1, what, "one of the documented form", error
            )
            return
        problem = self._check(user, output, record.offset)
        if problem is None:
            return
        if output.emitted_at_ms < self._new_from_ms:
            self._add(user, output.event.offset, problem)
        else:
            self._new.append((user, output.event.offset, problem))

    def _add(self, user: UserOf, offset: int, problem: Problem) -> None:
        kind, what, expected, got = problem
        self.unforgotten += what.endswith(TO_BE_FORGOTTEN)
        self._findings.add(kind, user[0], offset, what, expected, got)

    def _check(self, user: UserOf, output: Output, place: int) -> Problem | None:
        """Return the first thing that is wrong with an output that lies there in its topic."""
        partition, event = user[0], output.event
        if output.user_id.encode() != user[1]:
            return Kind.OUTPUT, "user_id", "the record's key", "another"
        log = self._oracle.partitions.get(partition)
        if log is None or event.partition != partition:
            return Kind.OUTPUT, "partition", partition, event.partition
        if event.offset >= log.end:  # came in after the log was read, or never
            self._ahead.append((partition, event.offset))
            self._last_early.pop(user, None)
            return None
        if self._rules.excluded(output, self._rules.withdrawn):
            self._with_excluded.append(output)
        answer = self._answers.setdefault(user, _Answer())
        answer.place = place
        if event.offset >= answer.offset:  # else consumers keep the one that they have
            answer.offset = event.offset
            if self._last_early:
                self._last_early.pop(user, None)
        told = self._told(user)
        if told is not None and output.emitted_at_ms < told.settled_ms:
            self.unverifiable += 1
            if told.forgets and event.offset == answer.offset:
                self._last_early[user] = output
            return None
        if self._is_forgotten(user, output):
            what, got = f"event {TO_BE_FORGOTTEN}", f"offset {event.offset}"
            return Kind.OUTPUT, what, "one that is left", got
        history, row = self._oracle.users.get(user), self._rows.newest.get(user)
        count = 0 if history is None else history.count_up_to(event.offset)
        if history is None or not history.ends_at(count, event.offset):
            is_repeat = history is not None and self._may_count_repeats(user, history, event.offset)
            if event.offset < log.first or log.lacks_middle or is_repeat:
                self.unverifiable += 1
                return None
            return Kind.OUTPUT, "event", "one of the user that counts", f"offset {event.offset}"
        if event.timestamp_ms != history.times_ms[count - 1]:
            expected = history.times_ms[count - 1]
            return Kind.OUTPUT, "timestamp_ms of the event", expected, event.timestamp_ms
        gone = self._gone(user, row)
        if gone is not None and output.history_length != count + gone:
            return Kind.OUTPUT, "history_length", count + gone, output.history_length
        problem = self._check_list(user, history, output, count)
        if problem is not None:
            return problem
        if row is not None and row.offset == event.offset:
            answer.is_at_row = True
            answer.is_listed = answer.is_listed or _is_listed(row, output)
        if output.source == "fallback" or output.model_version == 0:
            return self._check_fallback(output)
        return self._check_model(user, history, output, count, gone)

    def _gone(self, user: UserOf, row: Row | None) -> int | None:
        """Return how many of the user's events the log lacks; None where that is not known."""
        log, told = self._oracle.partitions[user[0]], self._told(user)
        forgets = told is not None and told.forgets
        if user in self._rows.deleted or (row is not None and row.reborn):
            return 0 if forgets and row is not None and row.gone == 0 else None
        if log.lacks_events or forgets:
            return None if row is None else row.gone
        return 0

    def _told(self, user: UserOf) -> Told | None:
        return self._oracle.told.get(user[1])

    def _is_forgotten(self, user: UserOf, output: Output) -> bool:
        """Tell whether a recommendation reflects an event that was to be forgotten."""
        told = self._told(user)
        if told is None or not told.forget_before_ms:
            return False
        event = output.event
        is_before = event.timestamp_ms < told.forget_before_ms
        return is_before or event.offset in self._oracle.forgotten.get(user, ())

    def _unremembered(self, user: UserOf, history: UserHistory) -> int:
        """Return how many of the user's first events may have gone with a deleted state."""
        row = self._rows.newest.get(user)
        if row is None:
            return len(history) if user in self._rows.deleted else history.deletable
        return most_lacking(history, row) if row.gone is None else max(0, -row.gone)

    def _may_count_repeats(self, user: UserOf, history: UserHistory, offset: int) -> bool:
        """Tell whether a record's id may have counted, since the one it repeats had gone."""
        return offset in history.repeats and self._unremembered(user, history) > 0

    def _check_list(
        self, user: UserOf, history: UserHistory, output: Output, count: int
    ) -> Problem | None:
        """Check what any list has to keep to."""
        ids = {item.item_id for item in output.items}
        if len(ids) < len(output.items):
            return Kind.OUTPUT, "items", "each once", f"{len(output.items) - len(ids)} repeated"
        most = max(self._rules.sizes)
        if len(ids) > most:
            return Kind.OUTPUT, "items", f"at most {most}", len(ids)
        told = self._told(user)
        if told is not None and (blocked := sorted(ids & told.blocked)):
            return Kind.OUTPUT, "items", "none that its user has blocked", ", ".join(blocked)
        if self._rules.exclude_seen:
            first = max(count - self._rules.least_ring, self._unremembered(user, history), 0)
            remembered = set(history.items[first:count])
            seen = sorted(item for item in ids if hash_of(item) in remembered)
            if seen:
                return Kind.OUTPUT, "items", "none that its user has seen", ", ".join(seen)
        return None

    def _check_fallback(self, output: Output) -> Problem | None:
        """Check a list that was made without a release: what is popular so far."""
        if output.source != "fallback" or output.model_version != 0:
            got = f"{output.source} of version {output.model_version}"
            return Kind.OUTPUT, "source", "fallback of version 0, or neither", got
        if self._log_is_whole and self._unheard_items(output):
            self._with_unheard.append(output)
        return None

    def _unheard_items(self, output: Output) -> list[str]:
        """Return the items of a list that no event names, of all that was read so far."""
        items = self._oracle.items
        return [item.item_id for item in output.items if hash_of(item.item_id) not in items]

    def _check_model(
        self, user: UserOf, history: UserHistory, output: Output, count: int, gone: int | None
    ) -> Problem | None:
        """Check a list against the release it names; note it to be computed anew.

        The log lacks `gone` of the user's events; None: nobody knows how many.
        """
        version = output.model_version
        known = self._by_version.get(version)
        if known is None:
            self._unheard.append((version, user[0], output.event.offset))
            return None
        if known.release is None:
            self.unverifiable += 1
            return None
        if output.source not in ("model", "cold_start"):
            return Kind.OUTPUT, "source", "model or cold_start", output.source
        listed = [hash_of(item.item_id) for item in output.items]
        items: list[int] = known.release.indices_of(listed).tolist()
        if 0 in items:
            unknown = output.items[items.index(0)].item_id
            return Kind.OUTPUT, f"item of release {version}", "one that it knows", unknown
        if len(items) not in self._rules.sizes:
            barred = set(known.release.known_of(list(self._rules.barred)))
            out = barred.union(self._rules.left_out(known.release, user, history, count))
            left = known.release.config.n_items - len(out) - self._rules.unseen(count, gone)
            least = min(max(self._rules.sizes), left)
            if len(items) < least:
                return Kind.SHORT, "items", least, len(items)
        row = self._rows.newest.get(user)
        start = self._start_of(known, row, count, is_from_start=gone == 0)
        if start is not None:
            self._note(known, user, output, (start, count), items)
        else:
            self.unverifiable += self._rules.covers(user)
        if row is not None and row.offset == output.event.offset:
            self._answers[user].at_row = None if start is not None else (output, items)
        return None

    def _start_of(
        self, known: KnownRelease, row: Row | None, count: int, *, is_from_start: bool
    ) -> int | None:
        """Return from which event on a scan gives the state behind a list; None: not known.

        A state starts where the ring began when it was last rebuilt, which the row tells, and every
        rebuild starts later than the one before.
        """
        if is_from_start and count <= self._rules.least_ring:
            return 0  # whenever it was rebuilt, the ring held everything
        if row is None or row.gone is None or row.weights_id != known.weights_id:
            return None
        start = row.started_at - row.gone
        if row.started_at == 0 or count > start + self._rules.most_ring:  # made after the rebuild
            return start if 0 <= start < count else None
        return None

    def _note(
        self,
        known: KnownRelease,
        user: UserOf,
        output: Output,
        span: tuple[int, int],
        items: list[int],
    ) -> None:
        """Note a list to be computed anew, unless its user is left out."""
        if self._rules.covers(user):
            if known.weights_id not in self.lists:
                self.lists[known.weights_id] = ListLog(max(self._rules.sizes))
            log = self.lists[known.weights_id]
            log.add(output, self._oracle.users[user], span, items)

    @property
    def needs_later_items(self) -> bool:
        """Whether a list has items that only events from after the log was read may name."""
        return bool(self._with_unheard)

    def finish(
        self,
        ends: Mapping[int, int],
        output_first: Mapping[int, int],
        announced: set[int],
        withdrawn: Mapping[str, float],
        changed: Collection[bytes],
    ) -> None:
        """Find what all outputs together tell.

        Where `needs_later_items`, the oracle has heard them.

        Args:
            ends: Where the interactions end by now, by partition.
            output_first: The first offset of the recommendations that exists after they were read,
                by partition: retention may have removed some before they came.
            announced: Versions of all releases that were announced by now.
            withdrawn: Items that are unavailable by now, and since when at the latest, in ms.
            changed: Keys of users of whom something else holds by now.
        """
        for user, offset, problem in self._new:
            if user[1] in changed:
                self.unverifiable += 1
            else:
                self._add(user, offset, problem)
        for user, output in self._last_early.items():
            if not self._may_lack_later(user, output_first):
                self._check_last_early(user, output)
        for output in self._with_excluded:
            if items := self._rules.excluded(output, withdrawn):
                what, expected = "items", "none that was withdrawn long before"
                event, got = output.event, ", ".join(items)
                self._findings.add(Kind.OUTPUT, event.partition, event.offset, what, expected, got)
        for output in self._with_unheard:
            if unheard := self._unheard_items(output):
                what, expected, got = "items", "none that no event names", ", ".join(unheard)
                event = output.event
                self._findings.add(Kind.OUTPUT, event.partition, event.offset, what, expected, got)
        for version, partition, offset in self._unheard:
            if version not in announced:
                self._findings.add(
                    Kind.OUTPUT, partition, offset, "model_version", "an announced one", version
                )
        for partition, offset in self._ahead:
            if offset >= ends[partition]:
                got = f"{offset}, behind the end of the topic"
                self._findings.add(Kind.OUTPUT, partition, offset, "event", "one that exists", got)
        for user, history in self._oracle.users.items():
            log = self._oracle.partitions[user[0]]
            answer = self._answers.get(user)
            due = due_count(history, log, self._rows.newest.get(user))
            is_excused = user in self._rows.deleted or user[1] in changed
            may_lack_later = self._may_lack_later(user, output_first)
            if due > history.deletable and not is_excused:
                due_offset = history.offsets[due - 1]
                self._check_answered(user[0], due_offset, answer, may_lack_later=may_lack_later)
            if answer is not None and not may_lack_later:
                is_at_rest = log.committed >= ends[user[0]]
                self._check_at_row(user, answer, is_at_rest=is_at_rest)

    def _may_lack_later(self, user: UserOf, output_first: Mapping[int, int]) -> bool:
        """Tell whether retention may have removed a later output of a user than the last that came.

        Of who has none, any; else one between the last, which is gone by now, and the oldest left.
        """
        answer, first = self._answers.get(user), output_first.get(user[0], 0)
        return first > 0 if answer is None else answer.place < first

    def _check_last_early(self, user: UserOf, output: Output) -> None:
        """Check what stands last under a user's key though a command came after it."""
        told = self._told(user)
        if told is None or not told.is_settled or not self._is_forgotten(user, output):
            return
        self.unverifiable -= 1
        what, got = f"last recommendation {TO_BE_FORGOTTEN}", "one that reflects such events"
        problem = Kind.OUTPUT, what, "a null value, or one of later events", got
        self._add(user, output.event.offset, problem)

    def _check_answered(
        self, partition: int, due: int, answer: _Answer | None, *, may_lack_later: bool
    ) -> None:
        if answer is None or answer.offset < due:
            if may_lack_later:
                self.unverifiable += 1
                return
            what = "answer to the last event of a user"
            got = "none" if answer is None else f"one at offset {answer.offset}"
            expected = "one at this offset or later"
            self._findings.add(Kind.NO_OUTPUT, partition, due, what, expected, got)

    def _check_at_row(self, user: UserOf, answer: _Answer, *, is_at_rest: bool) -> None:
        """Compare a user's row with the outputs at its offset."""
        row = self._rows.newest.get(user)
        if row is None or row.damaged:
            return
        if answer.is_at_row and not answer.is_listed:
            what = "recommended of the row"
            expected = "the items of an output at its offset"
            self._findings.add(Kind.ROW, user[0], row.offset, what, expected, "others")
        if answer.at_row is None or not row.weights_id:
            return
        output, items = answer.at_row
        known = self._by_version[output.model_version]
        if known.weights_id != row.weights_id:
            if is_at_rest:
                self.unverifiable -= self._rules.covers(user)
                what = f"weights that made the state behind a list of release {known.version}"
                self._findings.add(
                    Kind.STALE, user[0], row.offset, what, known.weights_id, row.weights_id
                )
        elif row.gone is not None:
            start = row.started_at - row.gone
            stop = self._oracle.users[user].count_up_to(row.offset)
            if 0 <= start <= stop:
                self.unverifiable -= self._rules.covers(user)
                self._note(known, user, output, (start, stop), items)


def _is_listed(row: Row, output: Output) -> bool:
    """Tell whether the row says that these items were recommended."""
    recommended = row.head["recommended"].tolist()
    listed = [hash_of(item.item_id) for item in output.items[: len(recommended)]]
    is_listed: bool = recommended == listed + [0] * (len(recommended) - len(listed))
    return is_listed
