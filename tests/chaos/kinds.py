"""What the driver has to know of a kind of worker, and our own kind."""

from collections.abc import Iterable
from dataclasses import dataclass, field
from datetime import UTC, datetime
from typing import Protocol

import msgspec

from pipeline.cluster.records import Record, read_partitions
from pipeline.cluster.topics import changelog_name, create_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import Settings
from pipeline.verification.changelog import read_rows
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.chaos.load import ITEMS
from tests.releases import random_release

FIRST_REGRESSING = 20


@dataclass(frozen=True, kw_only=True)
class Judgement:
    """What the topics tell when all is committed.

    Attributes:
        events: Events that count, by the log.
        lost: Events that are committed and in no state.
        double: Events that states count too often.
        different: States that are not those of their events, for whatever reason.
        wrong: Everything else that is wrong, in words.
    """

    events: int
    lost: int
    double: int
    different: int
    wrong: list[str] = field(default_factory=list)


class Kind(Protocol):
    """A kind of worker.

    Attributes:
        name: Its name on the command line.
        module: What a worker's process runs; reads the command line of `tests.worker_process`.
        exits_frozen: Codes that a worker may end with that was frozen.
        exits_broker: Codes that a worker may end with while Kafka is away.
        keeps_promises: Whether anything wrong fails the run.
    """

    name: str
    module: str
    exits_frozen: frozenset[int]
    exits_broker: frozenset[int]
    keeps_promises: bool

    def prepare(self, settings: Settings) -> None:
        """Make topics, and what else workers need to start."""
        ...

    def swap(self, settings: Settings, version: int) -> None:
        """Announce a new release."""
        ...

    def judge(self, settings: Settings) -> Judgement:
        """Hold the states to the log."""
        ...


class Ours:
    """`lrurec worker`, judged by `lrurec verify`."""

    name = "ours"
    module = "tests.worker_process"
    exits_frozen: frozenset[int] = frozenset({ExitCode.FROZEN, ExitCode.CHECKPOINT})
    # 1: Kafka was away when it started
    exits_broker: frozenset[int] = frozenset({ExitCode.KAFKA, ExitCode.CHECKPOINT, 1})
    keeps_promises = True

    def prepare(self, settings: Settings) -> None:
        create_topics(settings)
        self.swap(settings, version=1)

    def swap(self, settings: Settings, version: int) -> None:
        announce(settings, random_release(settings.trainer.releases_dir, ITEMS, version=version))

    def judge(self, settings: Settings) -> Judgement:
        report = verify(settings)
        offsets, outputs = report.offsets, report.outputs
        changelog = read_partitions(settings.kafka, changelog_name(settings.worker.app_id))
        counted = sum(int(row.head["event_count"]) for row in read_rows(changelog).newest.values())
        others = {
            "records pending": offsets.pending,
            "last lists missing": outputs.missing,
            "lists wrong": outputs.wrong,
            "lists short": outputs.short,
            "lists of other weights": report.stale,
            "dead letters wrong": report.dead_letters_wrong,
        }
        wrong = [f"{count} {what}" for what, count in others.items() if count]
        return Judgement(
            events=offsets.applied + offsets.missing,
            lost=offsets.missing,
            double=max(0, counted - offsets.applied),
            different=report.rows_wrong + report.states_different,
            wrong=[*wrong, *map(str, report.findings)],
        )


@dataclass(frozen=True, kw_only=True)
class OutputOrder:
    """The recommendations in the order in which Kafka has them.

    Attributes:
        outputs: How many there are.
        regressing: Those that reflect an older event of their user than one before them.
        worst_regress: By how many offsets, at the most.
        worst_pause_s: Longest time without one, of any partition.
        first: The first regressing ones, in words.
    """

    outputs: int
    regressing: int
    worst_regress: int
    worst_pause_s: float
    first: list[str]


def order_of(records: Iterable[Record]) -> OutputOrder:
    """Look at every output's source offset (`event.offset`) and time."""
    reached: dict[tuple[int, bytes | None], int] = {}
    last_ms: dict[int, int] = {}
    outputs = regressing = worst = pause_ms = 0
    first: list[str] = []
    for record in records:
        outputs += 1
        offset = msgspec.json.decode(record.value or b"")["event"]["offset"]
        user = record.partition, record.key
        behind = reached.get(user, -1) - offset
        if behind > 0:
            regressing += 1
            worst = max(worst, behind)
            if len(first) < FIRST_REGRESSING:
                when = datetime.fromtimestamp(record.timestamp / 1000, UTC)
                first.append(
                    f"{when:%T.%f} partition {record.partition}: {offset} after {offset + behind}"
                )
        reached[user] = max(offset, reached.get(user, -1))
        before_ms = last_ms.get(record.partition, record.timestamp)
        pause_ms = max(pause_ms, record.timestamp - before_ms)
        last_ms[record.partition] = record.timestamp
    return OutputOrder(
        outputs=outputs,
        regressing=regressing,
        worst_regress=worst,
        worst_pause_s=pause_ms / 1000,
        first=first,
    )
