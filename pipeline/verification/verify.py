"""`lrurec verify`: proof, from the topics alone, that every promise held up to what is committed.

An oracle beside the stream, which shares with it the decoders of records and of commands, the codec
of rows and the reading of releases, and nothing else: it applies the log with lists and dicts,
scans every history anew, and scores every item for every list that it can.

A stream may run meanwhile. What was committed is asked for first, then rows, what is told of users,
interactions and recommendations are read, each to its end: so everything that a commit promises is
there, and commands and events are there for all that a row tells. What is too new to be judged is
left out.

Rows and recommendations are judged by the settings, which have to be the worker's.
"""

import time
from collections.abc import Callable, Mapping, Sequence

from pipeline.cluster.topics import changelog_name
from pipeline.events import EventDecoder
from pipeline.settings import Settings
from pipeline.verification.catalogue import read_catalogue
from pipeline.verification.changelog import Rows, read_rows
from pipeline.verification.commands import Told, changed_users, read_users
from pipeline.verification.letters import LetterCheck
from pipeline.verification.lists import OutputRules
from pipeline.verification.oracle import LogOracle, PartitionLog, UserOf, hash_of
from pipeline.verification.outputs import OutputCheck
from pipeline.verification.releases import KnownRelease, announced_versions, read_releases
from pipeline.verification.report import Findings, Kind, OffsetCounts, OutputCounts, VerifyReport
from pipeline.verification.rows import RowCheck
from pipeline.verification.states import StateCheck
from pipeline.verification.topics import KafkaTopics, Topics

LOG_READS = 3
"""So often a partition is read in which retention overtakes the reader."""


def verify(
    settings: Settings,
    *,
    sample: int | None = None,
    topics: Topics | None = None,
    now_ms: int | None = None,
    on_stage: Callable[[str], None] = lambda stage: None,
) -> VerifyReport:
    """Check everything.

    Args:
        settings: Those of the worker.
        sample: Compute the states and lists of so many users only, chosen by a hash; None: of all.
            Everything else is checked of every user.
        topics: What to read; None: the cluster of the settings.
        now_ms: What time it is, milliseconds since 1970; None: ask the clock.
        on_stage: Told what is being done.

    Raises:
        BrokerUnavailable: No answer.
        TopicMismatch: A topic is missing.
        state.errors.StateFormatUnknown: A row is of a later format.
    """
    topics = topics or KafkaTopics(settings)
    now_ms = time.time_ns() // 1_000_000 if now_ms is None else now_ms
    return _Verification(settings, topics, now_ms, on_stage).run(sample)


class _Verification:
    def __init__(
        self, settings: Settings, topics: Topics, now_ms: int, on_stage: Callable[[str], None]
    ) -> None:
        self._now_ms = now_ms
        self._settings = settings
        self._names = settings.topics
        self._topics = topics
        self._on_stage = on_stage
        self._findings = Findings()

    def run(self, sample: int | None) -> VerifyReport:
        started_s = time.monotonic()
        findings, topics, names = self._findings, self._topics, self._names
        first = topics.first_offsets(names.interactions)  # before: what goes later was answered for
        committed = topics.committed_offsets()
        self._on_stage("reading state rows")
        changelog = changelog_name(self._settings.worker.app_id)
        rows = read_rows(topics.read(changelog))
        told = self._read_users(rows)
        self._on_stage("reading interactions")
        unread = {p: _unread(p, first[p], committed, rows) for p in first}
        oracle = self._read_log(committed, unread, told)
        self._on_stage("reading dead letters")
        letters = self._check_letters(oracle)
        self._on_stage("reading recommendations")
        releases = read_releases(topics.read(names.models))
        rules = self._rules(rows, oracle, releases, sample)
        row_check = RowCheck(oracle, rows, least_ring=rules.least_ring, findings=findings)
        row_check.run()
        outputs, changed = self._check_outputs(oracle, rows, releases, rules)
        self._on_stage("computing states and lists anew")
        states = StateCheck(oracle, releases, rules, findings)
        states.run(row_check.tasks, outputs.lists, changed)
        several, several_at = oracle.users_on_several_partitions()
        counts, unverifiable = findings.counts, row_check.unverifiable | states.unverifiable
        return VerifyReport(
            users=len(oracle.users),
            users_on_several_partitions=several,
            users_on_several_partitions_at=several_at,
            rows=len(rows.newest),
            rows_wrong=counts[Kind.ROW],
            states=states.states,
            states_different=counts[Kind.STATE],
            states_unverifiable=len(unverifiable),
            max_abs_diff=states.max_abs_diff,
            max_abs_diff_at=states.max_abs_diff_at,
            offsets=self._count_offsets(oracle, row_check.missing, letters.missing),
            outputs=OutputCounts(
                checked=outputs.checked,
                lists=states.lists,
                short=counts[Kind.SHORT],
                missing=counts[Kind.NO_OUTPUT],
                wrong=counts[Kind.OUTPUT],
                unverifiable=outputs.unverifiable + states.passed_over,
            ),
            users_told=len(told),
            users_forgotten=sum(user.forget_before_ms > 0 for user in told.values()),
            unforgotten=row_check.unforgotten + outputs.unforgotten,
            stale=counts[Kind.STALE],
            dead_letters_wrong=counts[Kind.LETTER],
            dead_letters_unverifiable=letters.unverifiable,
            partitions_uncommitted=len(self._uncommitted(committed, rows)),
            releases_unreadable=sum(known.release is None for known in releases),
            seconds=time.monotonic() - started_s,
            findings=tuple(findings.first),
        )

    def _uncommitted(self, committed: Mapping[int, int], rows: Rows) -> set[int]:
        """Return partitions with rows and no commit, even by now: a worker may have just begun."""
        without = {user[0] for user in rows.newest} - committed.keys()
        return without - self._topics.committed_offsets().keys() if without else without

    def _read_users(self, rows: Rows) -> dict[bytes, Told]:
        records = self._topics.read(self._names.users)
        return read_users(records, rows.forgotten_of, self._now_ms)

    def _read_log(
        self, committed: Mapping[int, int], unread: Mapping[int, range], told: Mapping[bytes, Told]
    ) -> LogOracle:
        """Read the interactions; once more what retention has removed something of meanwhile."""
        topics, name = self._topics, self._names.interactions
        first, ends = topics.first_offsets(name), topics.end_offsets(name)
        is_compacted = topics.is_compacted(name)
        oracle = LogOracle(EventDecoder(self._settings.fields), told=told)
        to_read = set(ends)
        for _ in range(LOG_READS):
            for p in to_read:
                log = PartitionLog(
                    first=first[p],
                    end=ends[p],
                    committed=committed.get(p, first[p]),
                    compacted=is_compacted,
                    unread=unread.get(p, range(0)),
                )
                oracle.begin(p, log)
            stops = {p: end if p in to_read else 0 for p, end in ends.items()}
            for record in topics.read(name, end=stops):
                if record.offset < stops.get(record.partition, 0):
                    oracle.take(record)
            first = topics.first_offsets(name)
            to_read = {p for p in to_read if oracle.partitions[p].lacks_below(first[p])}
            if not to_read:
                break
        for p in to_read:
            oracle.partitions[p].overtaken = True
        return oracle

    def _rules(
        self, rows: Rows, oracle: LogOracle, releases: Sequence[KnownRelease], sample: int | None
    ) -> OutputRules:
        """Work out what lists have to keep to, by the settings and by all that rows tell."""
        recommend = self._settings.recommend
        rings = {self._settings.ring, *(layout.ring for layout in rows.layouts)}
        if recommend.ring is None:
            rings |= {known.release.config.max_length for known in releases if known.release}
        sizes = {recommend.top_k, *(layout.recommended for layout in rows.layouts)}
        sampled = None
        if sample is not None:
            sampled = frozenset(sorted(oracle.users, key=_place)[:sample])
        catalogue = read_catalogue(self._topics.read(self._names.items))
        return OutputRules(
            sizes=frozenset(sizes - {0}),
            exclude_seen=recommend.exclude_seen,
            least_ring=min(rings),
            most_ring=max(rings),
            barred=frozenset(map(hash_of, catalogue.barred)),
            withdrawn=catalogue.withdrawn,
            told=oracle.told,
            sampled=sampled,
        )

    def _check_letters(self, oracle: LogOracle) -> LetterCheck:
        names = self._names
        check = LetterCheck(oracle, names.interactions, self._findings)
        for record in self._topics.read(names.dead_letters):
            check.take(record)
        check.finish(self._topics.first_offsets(names.dead_letters))
        return check

    def _check_outputs(
        self, oracle: LogOracle, rows: Rows, releases: Sequence[KnownRelease], rules: OutputRules
    ) -> tuple[OutputCheck, frozenset[bytes]]:
        """Check recommendations; also returns the users of whom something was told meanwhile."""
        topics, names = self._topics, self._names
        by_version = {known.version: known for known in releases}
        check = OutputCheck(oracle, rows, by_version, rules, self._findings, self._now_ms)
        for record in topics.read(names.recommendations):
            check.take(record)
        first = topics.first_offsets(names.recommendations)
        if check.needs_later_items:
            log_ends = {p: log.end for p, log in oracle.partitions.items()}
            for record in topics.read(names.interactions, start=log_ends):
                oracle.take_item(record)
        announced = announced_versions(topics.read(names.models))
        withdrawn = read_catalogue(topics.read(names.items)).withdrawn
        changed = changed_users(oracle.told, self._read_users(rows))
        ends = topics.end_offsets(names.interactions)
        check.finish(ends, first, announced, withdrawn, changed)
        return check, changed

    def _count_offsets(
        self, oracle: LogOracle, missing_events: int, missing_letters: int
    ) -> OffsetCounts:
        logs = oracle.partitions.items()
        for partition, log in logs:
            if log.beyond_end:
                self._findings.add(
                    Kind.MISSING,
                    partition,
                    log.end,
                    "committed offset",
                    f"at most {log.end}, the end of the topic",
                    log.committed,
                    count=log.beyond_end,
                )
            if log.unread:
                self._findings.add(
                    Kind.MISSING,
                    partition,
                    log.unread.start,
                    "records that retention removed before anybody answered for them",
                    f"a log from {log.unread.start} on",
                    f"one from {log.unread.stop} on",
                    count=len(log.unread),
                )
        lost = sum(log.beyond_end + len(log.unread) for _, log in logs)
        return OffsetCounts(
            applied=sum(log.applied for _, log in logs) - missing_events,
            duplicate=sum(log.duplicate for _, log in logs),
            skipped=sum(log.skipped for _, log in logs),
            forgotten=sum(log.forgotten for _, log in logs),
            dead=sum(log.dead for _, log in logs) - missing_letters,
            without_record=sum(log.without_record for _, log in logs),
            missing=missing_events + missing_letters + lost,
            pending=sum(log.pending for _, log in logs),
        )


def _place(user: UserOf) -> tuple[int, UserOf]:
    """Return where a user stands in an order that has nothing to do with its id or activity."""
    return hash_of(f"{user[0]} {user[1].hex()}"), user


def _unread(partition: int, first: int, committed: Mapping[int, int], rows: Rows) -> range:
    """Return the offsets before the log's first that nobody has answered for."""
    if committed.get(partition, first) >= first:  # as ever; else all rows are gone through
        return range(0)
    return range(rows.reached(partition, committed[partition]), first)
