"""What an assignment waits for, what ends it, which rows it publishes again; without a Kafka."""

import asyncio
from collections.abc import Collection, Iterator
from concurrent.futures import ThreadPoolExecutor
from types import SimpleNamespace
from typing import Any

import pytest

from pipeline.engine import restore
from pipeline.engine.restore import Restore
from pipeline.engine.stop import ExitCode
from pipeline.errors import BrokerRefuses, BrokerUnavailable

EXPECTED = 4


class Ended(Exception):
    """The process would have ended."""


@pytest.fixture
def made(monkeypatch: pytest.MonkeyPatch) -> Any:
    """A service that was never started, without pauses; what would end the process raises."""

    def end(code: ExitCode, *_: object) -> None:
        raise Ended(code)

    monkeypatch.setattr(restore, "end_process", end)
    monkeypatch.setattr(restore, "LOG_ID_PAUSE_S", 0.0)
    service: Any = Restore.__new__(Restore)
    service.app = SimpleNamespace(
        conf=SimpleNamespace(topic_partitions=EXPECTED),
        engine_options=SimpleNamespace(source="clicks", restore_deadline_s=60.0),
    )
    return service


def knows(service: Any, *answers: Collection[int] | None) -> list[str]:
    """Let the cluster's metadata tell these partitions, one after the other, then the last on."""
    asked: list[str] = []

    def partitions(topic: str) -> Collection[int] | None:
        asked.append(topic)
        return answers[min(len(asked), len(answers)) - 1]

    cluster = SimpleNamespace(partitions_for_topic=partitions)
    consumer = SimpleNamespace(_client=SimpleNamespace(cluster=cluster))
    service.app.consumer = SimpleNamespace(
        _thread=SimpleNamespace(_ensure_consumer=lambda: consumer)
    )
    return asked


@pytest.mark.parametrize(
    ("answers", "assigned", "times"),
    [([range(4)], {0}, 1), ([range(3)], {3}, 1), ([None, range(4)], {0}, 2)],
    ids=["all are known", "the assignment knows more", "known a moment later"],
)
def test_an_assignment_waits_for_all_partitions_to_be_known(
    made: Any, answers: list[Collection[int] | None], assigned: set[int], times: int
) -> None:
    """A broker that just started may know fewer for a moment."""
    asked = knows(made, *answers)

    asyncio.run(made._require_partitions(assigned))

    assert asked == ["clicks"] * times


@pytest.mark.parametrize(
    ("known", "assigned", "deadline_s"),
    [(range(5), {0}, 60.0), (range(4), {4}, 60.0), (range(3), {0}, -1.0), (None, set(), -1.0)],
    ids=["more", "more were assigned", "fewer for long", "the topic is gone"],
)
def test_a_source_of_other_partitions_ends_the_worker(
    made: Any,
    monkeypatch: pytest.MonkeyPatch,
    known: Collection[int] | None,
    assigned: set[int],
    deadline_s: float,
) -> None:
    """At once where there are more: none goes away again."""
    monkeypatch.setattr(restore, "METADATA_DEADLINE_S", deadline_s)
    asked = knows(made, known)

    with pytest.raises(Ended, match=str(int(ExitCode.TOPICS))):
        asyncio.run(made._require_partitions(assigned))

    assert len(asked) == 1


def answering(service: Any, *answers: bytes | Exception) -> Iterator[bytes | Exception]:
    """Let Kafka say these of the changelog's id, one after the other."""
    left = iter(answers)

    def changelog_id() -> bytes:
        answer = next(left)
        if isinstance(answer, Exception):
            raise answer
        return answer

    service.app.changelog_id = changelog_id
    return left


def test_the_changelog_is_asked_for_until_kafka_answers(made: Any) -> None:
    """A Kafka that is away for a moment costs the time alone."""
    answering(made, BrokerUnavailable("away"), BrokerUnavailable("away"), b"id")

    assert asyncio.run(made._ask_log_id()) == b"id"


@pytest.mark.parametrize(
    ("error", "deadline_s"), [(BrokerRefuses("no right"), 60.0), (BrokerUnavailable("away"), -1.0)]
)
def test_a_changelog_that_is_not_told_ends_the_worker(
    made: Any, error: Exception, deadline_s: float
) -> None:
    """A refusal at once, a Kafka that stays away at the deadline of a restore."""
    made.app.engine_options.restore_deadline_s = deadline_s
    left = answering(made, error, b"id")

    with pytest.raises(Ended, match=str(int(ExitCode.KAFKA))):
        asyncio.run(made._ask_log_id())

    assert list(left) == [b"id"]


def test_rows_that_the_changelog_lacks_are_published_but_for_damaged_ones(
    made: Any, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """Some at a time; where all of some are damaged, those after them still are."""
    monkeypatch.setattr(restore, "REPUBLISH_ROWS", 2)
    a, d, e = (b"a", b"1"), (b"d", b"4"), (b"e", b"6")
    local = [a, (b"b", b"bad"), (b"c", b"bad"), (b"c2", b"bad"), (b"seen", b"5"), d, e]
    part, logged, written = SimpleNamespace(number=3), [], []

    async def log_rows(of: object, rows: list[tuple[bytes, bytes]]) -> int:
        assert of is part
        logged.append(rows)
        return 100 + len(logged)

    with ThreadPoolExecutor(1) as disk:
        made.app.stream_service = SimpleNamespace(
            disk=disk,
            store=SimpleNamespace(
                scan=lambda number: iter(local if number == 3 else []),
                write=lambda *arguments: written.append(arguments),
            ),
            processor=SimpleNamespace(newer=lambda rows, _: [row != b"bad" for row in rows]),
            checkpointer=SimpleNamespace(log_rows=log_rows),
        )
        asyncio.run(made._publish_missing(part, {b"seen"}))

    assert logged == [[a], [d, e]]
    assert written == [(3, rows, 101 + number) for number, rows in enumerate(logged)]
    assert "partition 3: 3 local rows published to the changelog again" in caplog.text
