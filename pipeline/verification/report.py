"""What `lrurec verify` found: counts, the first findings of each kind, and the verdict."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from enum import StrEnum, unique
from typing import Any

FINDINGS_OF_A_KIND = 5


@unique
class Kind(StrEnum):
    """What can be wrong."""

    MISSING = "missing"
    """An event that a state lacks, a record that is neither an event nor a dead letter."""

    ROW = "row"
    """A state row whose facts are not those of its user's events."""

    STATE = "state"
    """A hidden state that is not that of a scan."""

    LETTER = "dead_letter"
    """A dead letter that is not that of its record."""

    NO_OUTPUT = "output_missing"
    """A user whose last event was answered with nothing."""

    OUTPUT = "output_wrong"
    """A recommendation that is not well made, or should have been taken back."""

    SHORT = "output_short"
    """A recommendation with fewer items than there could be."""

    STALE = "stale"
    """A recommendation that the weights it names would not have made."""


@dataclass(frozen=True, kw_only=True)
class Finding:
    """One thing that is wrong; names no user, for it may be logged.

    Attributes:
        kind: Which kind of wrong.
        partition: Of the user's events.
        offset: Of the event that it is about.
        what: What is wrong.
        expected: What follows from the log.
        got: What there is.
    """

    kind: Kind
    partition: int
    offset: int
    what: str
    expected: str
    got: str

    def __str__(self) -> str:
        where = f"partition {self.partition} offset {self.offset}"
        return f"{where}: {self.what}: expected {self.expected}, got {self.got}"


@dataclass(slots=True)
class Findings:
    """Collects what is wrong: all of it as counts, the first of each kind in words."""

    counts: Counter[Kind] = field(default_factory=Counter)
    first: list[Finding] = field(default_factory=list)

    def add(
        self,
        kind: Kind,
        partition: int,
        offset: int,
        what: str,
        expected: object,
        got: object,
        *,
        count: int = 1,
    ) -> None:
        """Note one; `count` is how many things are wrong by it."""
        self.counts[kind] += count
        if sum(finding.kind == kind for finding in self.first) < FINDINGS_OF_A_KIND:
            finding = Finding(
                kind=kind,
                partition=partition,
                offset=offset,
                what=what,
                expected=str(expected),
                got=str(got),
            )
            self.first.append(finding)


@dataclass(frozen=True, kw_only=True)
class OffsetCounts:
    """What came of the interactions topic's offsets.

    All but `pending` add up to the offsets from the first that exists up to the committed ones.
    """

    applied: int
    """Events that moved a state."""
    duplicate: int
    """Events whose id was among their user's last ones."""
    skipped: int
    """Events whose type does not count."""
    forgotten: int
    """Events from before the time up to which their user is forgotten."""
    dead: int
    """Records that are no events, and are in the dead-letter topic."""
    without_record: int
    """Offsets that hold no record: of transactions, or removed by compaction."""
    missing: int
    """All others."""
    pending: int
    """Records that nobody has answered for yet."""


@dataclass(frozen=True, kw_only=True)
class OutputCounts:
    """What the recommendations are worth."""

    checked: int
    """Recommendations looked at."""
    lists: int
    """Of these, lists computed anew."""
    short: int
    """Fewer items than there could be."""
    missing: int
    """Users whose last event was answered with nothing."""
    wrong: int
    """Not well made: repeated, unknown or excluded items, an unknown release, a false event."""
    unverifiable: int
    """Cannot be judged: events, release or state that they rest on are gone, or they were made
    before a later command about their user was surely heard."""


@dataclass(frozen=True, kw_only=True)
class VerifyReport:
    """The result; the promises hold where nothing is missing, wrong, short or different."""

    users: int
    """Users with an event that counts, by partition."""
    users_on_several_partitions: int
    """Users whose events arrive on more than one partition: each has a state on every one."""
    users_on_several_partitions_at: tuple[tuple[int, int], ...]
    """Partition and offset of two events of one of them."""
    rows: int
    """State rows."""
    rows_wrong: int
    """Rows whose facts are not those of the user's events."""
    states: int
    """Hidden states computed anew."""
    states_different: int
    """Of these, those that differ by more than the tolerance."""
    states_unverifiable: int
    """Rows that cannot be judged: events they rest on, or their release, are gone, or a command to
    forget their user is too new."""
    max_abs_diff: float
    """Largest difference of a state's number, taken of its largest where that exceeds 1."""
    max_abs_diff_at: tuple[int, int] | None
    """Partition, and offset of the last event, of the state that has it."""
    offsets: OffsetCounts
    outputs: OutputCounts
    users_told: int
    """Users whom the users topic names."""
    users_forgotten: int
    """Of these, those who are to be forgotten up to some time."""
    unforgotten: int
    """Of the wrong rows and recommendations, those that hold what was to be forgotten."""
    stale: int
    """Recommendations that the weights they name would not have made."""
    dead_letters_wrong: int
    """Dead letters that are not those of their records."""
    dead_letters_unverifiable: int
    """Dead records whose letters retention may have removed."""
    partitions_uncommitted: int
    """Partitions with rows and without a committed offset: nothing in them is known to be due."""
    releases_unreadable: int
    """Announced releases that cannot be read any more."""
    seconds: float
    """How long it took."""
    findings: tuple[Finding, ...]
    """The first of each kind."""

    @property
    def holds(self) -> bool:
        """Whether every promise that could be checked was kept."""
        return not (
            self.rows_wrong
            or self.states_different
            or self.offsets.missing
            or self.outputs.short
            or self.outputs.missing
            or self.outputs.wrong
            or self.stale
            or self.dead_letters_wrong
        )

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` writes."""
        return {"holds": self.holds, **asdict(self)}
