"""Reading of topics as they are, outside of any consumer group.

By aiokafka: it decodes records in C and has every compression. Errors leave as those of
`pipeline.cluster.clients`.
"""

import asyncio
import time
from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Protocol

import aiokafka
from kafka import IsolationLevel, KafkaAdminClient, OffsetSpec, TopicPartition

from pipeline.cluster.clients import aiokafka_options, kafka_admin, kafka_errors
from pipeline.cluster.header_names import tolerate_bad_names
from pipeline.cluster.reachable import pass_over_silent_servers
from pipeline.cluster.rights import TOPIC_REFUSED, grant
from pipeline.errors import BrokerUnavailable, TopicMismatch
from pipeline.settings import KafkaSettings

READ_WAIT_MS = 200
FETCH_WAIT_MS = 5000  # the broker answers at once where something is new; idle, it costs nothing
# Longest that a reader waits for a record that must be there: a broker's restart fits in.
STALL_DEADLINE_S = 60.0


class Record(Protocol):
    """A record as read from a topic; `timestamp` is in ms, headers are (name, value) pairs."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: Sequence[tuple[str, bytes]]


def place_of(record: Record) -> str:
    """Return where a record stands, for the log: by it an operator finds it."""
    return f"{record.topic} partition {record.partition} offset {record.offset}"


def first_offsets(kafka: KafkaSettings, topic: str) -> dict[int, int]:
    """Return each partition's first offset that still exists.

    Raises:
        BrokerUnavailable: No answer.
        TopicMismatch: There is no such topic.
    """
    with kafka_admin(kafka) as admin:
        return _offsets(admin, kafka, topic, OffsetSpec.EARLIEST, committed=False)


def end_offsets(kafka: KafkaSettings, topic: str, *, committed: bool = False) -> dict[int, int]:
    """Return each partition's end: the offset that the next record will have.

    Args:
        kafka: The cluster.
        topic: Name of the topic.
        committed: Whether to stop at the first transaction that is still open.

    Raises:
        BrokerUnavailable: No answer.
        TopicMismatch: There is no such topic.
    """
    with kafka_admin(kafka) as admin:
        return _offsets(admin, kafka, topic, OffsetSpec.LATEST, committed=committed)


def offsets_since(kafka: KafkaSettings, topic: str, timestamp_ms: int) -> dict[int, int]:
    """Return each partition's first offset whose record has this timestamp or a later one.

    That is the partition's end where no record has.

    Raises:
        BrokerUnavailable: No answer.
        TopicMismatch: There is no such topic.
    """
    with kafka_admin(kafka) as admin:
        found = _offsets(admin, kafka, topic, timestamp_ms, committed=False)
        ends = _offsets(admin, kafka, topic, OffsetSpec.LATEST, committed=False)
    return {p: offset if offset >= 0 else ends[p] for p, offset in found.items()}


def _offsets(
    admin: KafkaAdminClient,
    kafka: KafkaSettings,
    topic: str,
    spec: OffsetSpec | int,
    *,
    committed: bool,
) -> dict[int, int]:
    (described,) = admin.describe_topics([topic])
    if described["error_code"] == TOPIC_REFUSED:
        msg = (
            f"topic {topic}: expected the right Describe at {kafka.bootstrap_servers}, got none; "
            f"{grant('Describe')}"
        )
        raise TopicMismatch(msg)
    partitions = described["partitions"]
    if not partitions:
        msg = (
            f"topic {topic}: expected at {kafka.bootstrap_servers}, not found there; "
            "correct the name (topics.*, worker.app_id) if another is meant, else make it: "
            "lrurec topics create"
        )
        raise TopicMismatch(msg)
    level = IsolationLevel.READ_COMMITTED if committed else IsolationLevel.READ_UNCOMMITTED
    found = admin.list_partition_offsets(
        {TopicPartition(topic, p["partition_index"]): spec for p in partitions},
        isolation_level=level,
    )
    return {tp.partition: at.offset for tp, at in sorted(found.items())}


def read_partitions(
    kafka: KafkaSettings,
    topic: str,
    start: Mapping[int, int] | None = None,
    end: Mapping[int, int] | None = None,
    *,
    committed: bool = True,
) -> Iterator[Record]:
    """Read a topic to where it ends now, in order within each partition, partitions mixed.

    The ends are taken before the first record is read; what comes in later is not read. Belongs to
    no consumer group and commits nothing. Not for use in a coroutine: it runs its own event loop.

    Args:
        kafka: The cluster.
        topic: Name of the topic.
        start: Offset to start from, by partition; from the first record that still exists where a
            partition is not named, or where retention has removed the one that is.
        end: Offset to stop before, by partition; where a partition ends now if it is not named.
        committed: Whether to leave out records of transactions that were aborted or are still open.

    Raises:
        BrokerUnavailable: No answer, or none for `STALL_DEADLINE_S` while records are missing.
        TopicMismatch: There is no such topic.
    """
    with kafka_admin(kafka) as admin:
        first = _offsets(admin, kafka, topic, OffsetSpec.EARLIEST, committed=False)
        ends = _offsets(admin, kafka, topic, OffsetSpec.LATEST, committed=committed)
    positions = {p: max(offset, (start or {}).get(p, offset)) for p, offset in first.items()}
    stops = {p: min(offset, (end or {}).get(p, offset)) for p, offset in ends.items()}
    missing = {
        aiokafka.TopicPartition(topic, p): stop for p, stop in stops.items() if positions[p] < stop
    }
    if not missing:
        return
    with asyncio.Runner() as runner, kafka_errors(f"reading {topic}", kafka):
        reader = runner.run(_start_reader(kafka, list(missing), positions, committed=committed))
        try:
            while missing:
                for records in runner.run(_next_records(reader, kafka, missing)):
                    yield from records
        finally:
            runner.run(_stop_reader(reader))


def follow_topic(
    kafka: KafkaSettings,
    topic: str,
    *,
    start: Mapping[int, int] | None = None,
    from_start: bool = False,
    is_over: Callable[[], bool] = lambda: False,
) -> Iterator[Record]:
    """Follow a topic without end, from its end as it is at this call or from its first record.

    Belongs to no consumer group. Records of aborted and of open transactions are left out. A Kafka
    that goes away is waited for. Not for use in a coroutine.

    Args:
        kafka: The cluster.
        topic: Name of the topic.
        start: Offset to start from, by partition.
        from_start: Whether to begin with what is in the topic already where `start` says nothing.
        is_over: Asked several times a second, also while nothing comes; true ends it.

    Raises:
        BrokerUnavailable: No answer at the start.
        TopicMismatch: There is no such topic.
    """
    positions = first_offsets(kafka, topic) if from_start else end_offsets(kafka, topic)
    positions = {p: (start or {}).get(p, offset) for p, offset in positions.items()}
    return _follow(kafka, topic, positions, is_over)


def _follow(
    kafka: KafkaSettings, topic: str, positions: Mapping[int, int], is_over: Callable[[], bool]
) -> Iterator[Record]:
    partitions = [aiokafka.TopicPartition(topic, partition) for partition in positions]
    with asyncio.Runner() as runner, kafka_errors(f"following {topic}", kafka):
        reader = runner.run(_start_reader(kafka, partitions, positions, committed=True))
        try:
            while not is_over():
                for records in runner.run(reader.getmany(timeout_ms=READ_WAIT_MS)).values():
                    yield from records
        finally:
            runner.run(_stop_reader(reader))


async def _start_reader(
    kafka: KafkaSettings,
    partitions: Sequence[aiokafka.TopicPartition],
    positions: Mapping[int, int],
    *,
    committed: bool,
) -> aiokafka.AIOKafkaConsumer:
    tolerate_bad_names()
    pass_over_silent_servers()
    reader = aiokafka.AIOKafkaConsumer(
        **aiokafka_options(kafka),
        enable_auto_commit=False,
        auto_offset_reset="earliest",  # retention may overtake a reader
        isolation_level="read_committed" if committed else "read_uncommitted",
        fetch_max_wait_ms=FETCH_WAIT_MS,
        consumer_timeout_ms=FETCH_WAIT_MS,  # how often its fetcher looks around without any cause
    )
    try:
        await reader.start()
        reader.assign(partitions)
        for tp in partitions:
            reader.seek(tp, positions[tp.partition])
    except BaseException:
        await reader.stop()
        raise
    return reader


async def _stop_reader(reader: aiokafka.AIOKafkaConsumer) -> None:
    try:
        await reader.stop()
    except asyncio.CancelledError:
        # With Kafka away, aiokafka 0.14 stops half-way: cancelling its fetch between two tries lets
        # the cancellation out.
        await reader._client.close()


async def _next_records(
    reader: aiokafka.AIOKafkaConsumer,
    kafka: KafkaSettings,
    missing: dict[aiokafka.TopicPartition, int],
) -> list[list[Record]]:
    """Return the next records of each partition; take partitions that are read out of `missing`.

    Positions decide, not records: a partition may end in markers of transactions or in offsets
    whose records compaction removed.
    """
    deadline = time.monotonic() + STALL_DEADLINE_S
    while True:
        fetched = await reader.getmany(timeout_ms=READ_WAIT_MS)
        chunks = [
            [record for record in records if record.offset < missing[tp]]
            if records[-1].offset >= missing[tp]
            else records
            for tp, records in fetched.items()
            if tp in missing
        ]
        positions = {tp: await reader.position(tp) for tp in missing}
        for tp, position in positions.items():
            if position >= missing[tp]:
                del missing[tp]
                reader.pause(tp)
        if chunks or not missing:
            return chunks
        if time.monotonic() > deadline:
            where = ", ".join(
                f"{tp.topic}[{tp.partition}] at {positions[tp]} of {end}"
                for tp, end in missing.items()
            )
            msg = (
                f"reading from {kafka.bootstrap_servers}: nothing came for {STALL_DEADLINE_S:g} s "
                f"though records are there ({where})"
            )
            raise BrokerUnavailable(msg)
