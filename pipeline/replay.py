"""A file of interactions into the interactions topic, in order for every user.

Records go out in batches that are built here, one partition at a time: several times faster than a
client's call for every record, and in the same order. The partition is that of Java clients and
aiokafka, murmur2 of the key.
"""

import asyncio
import time
from collections.abc import Callable, Iterable, Mapping
from dataclasses import dataclass
from datetime import UTC, datetime
from typing import Any

import aiokafka
import msgspec
from aiokafka.errors import KafkaTimeoutError
from aiokafka.partitioner import murmur2

from pipeline.cluster.clients import aiokafka_options, kafka_errors
from pipeline.cluster.reachable import pass_over_silent_servers
from pipeline.cluster.records import end_offsets
from pipeline.errors import BrokerUnavailable
from pipeline.events import MIN_AUTO_MS
from pipeline.files.rows import Interaction, Interactions
from pipeline.settings import FieldSettings, Settings

BATCH_BYTES = 131_072
BLOCK_EVENTS = 1000  # sent between two looks at the clock when there is no rate to keep
TICK_S = 0.01  # pause between two bursts when there is one
DELIVERY_DEADLINE_S = 40.0  # without any confirmation; a broker's restart fits in
STOP_DEADLINE_S = 1.0  # for a producer whose batches cannot be delivered


@dataclass(frozen=True, kw_only=True)
class ReplayReport:
    """What was delivered: records, seconds it took, and each partition's last offset, if any."""

    records: int
    seconds: float
    last_offsets: Mapping[int, int]

    @property
    def rate(self) -> float:
        """Records per second."""
        return self.records / self.seconds if self.seconds else 0.0


class EventWriter:
    """Writes interactions as the JSON that `fields` describes, so that a worker reads them back.

    Args:
        fields: Paths and the form of the timestamp. An event id is never written.
    """

    def __init__(self, fields: FieldSettings) -> None:
        self._unit = fields.timestamp_unit
        self._template = _template(fields, with_type=False)
        self._typed_template = _template(fields, with_type=True)
        self._quoted: dict[str, bytes] = {}

    def write(self, row: Interaction) -> bytes:
        """Return the value of one record."""
        template = self._template if row.event_type is None else self._typed_template
        return template % {
            b"user": self._quote(row.user),
            b"item": self._quote(row.item),
            b"time": self._time(row.timestamp_ms),
            b"type": self._quote(row.event_type or ""),
        }

    def _quote(self, text: str) -> bytes:
        quoted = self._quoted.get(text)
        if quoted is None:
            quoted = self._quoted[text] = msgspec.json.encode(text)
        return quoted

    def _time(self, timestamp_ms: int) -> bytes:
        if self._unit == "ms" or (self._unit == "auto" and timestamp_ms >= MIN_AUTO_MS):
            return b"%d" % timestamp_ms
        if self._unit == "us":
            return b"%d" % (timestamp_ms * 1000)
        if self._unit == "s":
            return b"%d.%03d" % divmod(timestamp_ms, 1000)
        moment = datetime.fromtimestamp(timestamp_ms // 1000, UTC)
        return f'"{moment:%Y-%m-%dT%H:%M:%S}.{timestamp_ms % 1000:03}Z"'.encode()


def _template(fields: FieldSettings, *, with_type: bool) -> bytes:
    """Return a format of `bytes` with the slots user, item, time and, if asked for, type."""
    paths = {"user": fields.user_id, "item": fields.item_id, "time": fields.timestamp}
    if with_type:
        paths["type"] = fields.event_type
    tree: dict[str, Any] = {}
    for slot, path in paths.items():
        if path is not None:
            *parents, name = path.split(".")
            node = tree
            for parent in parents:
                node = node.setdefault(parent, {})
            node[name] = slot
    return _format_of(tree)


def _format_of(node: dict[str, Any] | str) -> bytes:
    if isinstance(node, str):
        return b"%%(%s)b" % node.encode()
    members = (
        msgspec.json.encode(name).replace(b"%", b"%%") + b":" + _format_of(child)
        for name, child in node.items()
    )
    return b"{" + b",".join(members) + b"}"


def replay(
    settings: Settings,
    interactions: Interactions,
    *,
    start: int = 0,
    stop: int | None = None,
    rate: float | None = None,
    on_progress: Callable[[int], object] = lambda delivered: None,
) -> ReplayReport:
    """Send rows of a file into the interactions topic and wait until all are delivered.

    Each user's rows arrive in order. The record's own timestamp is the time of sending. Delivery is
    idempotent: a retry makes no second record. Not for use in a coroutine.

    Args:
        settings: Cluster, topic and the form of a record.
        interactions: The rows, by time.
        start: First row to send.
        stop: Row to stop before; None: the end.
        rate: Events per second; None: as fast as Kafka takes them.
        on_progress: Told how many records are delivered, every now and then.

    Raises:
        BrokerUnavailable: Kafka does not answer or refuses records; some may have been delivered.
        TopicMismatch: There is no interactions topic.
    """
    topic = settings.topics.interactions
    partitions = len(end_offsets(settings.kafka, topic))
    rows = interactions.rows(start, stop)
    with kafka_errors(f"sending to {topic}", settings.kafka):
        return asyncio.run(_send(settings, partitions, rows, rate, on_progress))


class _Deliveries:
    """Counts what Kafka has confirmed."""

    def __init__(self, on_progress: Callable[[int], object]) -> None:
        self.records = 0
        self.last_offsets: dict[int, int] = {}
        self._on_progress = on_progress
        self._open: list[tuple[int, asyncio.Future[Any]]] = []

    def expect(self, records: int, future: asyncio.Future[Any]) -> None:
        # Once one has failed nobody awaits the others, and asyncio would complain of each.
        future.add_done_callback(lambda done: done.cancelled() or done.exception())
        self._open.append((records, future))

    async def settle(self, *, wait: bool) -> None:
        """Take what was confirmed; with `wait`, wait until everything is. Raises what failed."""
        still_open = []
        for records, future in self._open:
            if not wait and not future.done():
                still_open.append((records, future))
                continue
            metadata = await asyncio.wait_for(future, DELIVERY_DEADLINE_S)
            self.records += records
            last = metadata.offset + records - 1
            self.last_offsets[metadata.partition] = max(
                last, self.last_offsets.get(metadata.partition, -1)
            )
        self._open = still_open
        self._on_progress(self.records)


class _Batches:
    """Fills one batch per partition and sends it when it is full."""

    def __init__(
        self, producer: aiokafka.AIOKafkaProducer, topic: str, partitions: int, sent: _Deliveries
    ) -> None:
        self._producer = producer
        self._topic = topic
        self._partitions = partitions
        self._sent = sent
        self._open: dict[int, Any] = {}
        self._partition_of: dict[str, int] = {}

    async def add(self, user: str, value: bytes, now_ms: int) -> None:
        key = user.encode()
        partition = self._partition_of.get(user)
        if partition is None:
            partition = (murmur2(key) & 0x7FFFFFFF) % self._partitions
            self._partition_of[user] = partition
        batch = self._open.get(partition)
        if batch is None:
            batch = self._open[partition] = self._producer.create_batch()
        if batch.append(timestamp=now_ms, key=key, value=value) is None:
            await self._send(partition)
            await self.add(user, value, now_ms)

    async def send_all(self) -> None:
        for partition in list(self._open):
            await self._send(partition)

    async def _send(self, partition: int) -> None:
        batch = self._open.pop(partition)
        records = batch.record_count()
        future = await self._producer.send_batch(batch, self._topic, partition=partition)
        self._sent.expect(records, future)


async def _send(
    settings: Settings,
    partitions: int,
    rows: Iterable[Interaction],
    rate: float | None,
    on_progress: Callable[[int], object],
) -> ReplayReport:
    compression = settings.topics.compression
    pass_over_silent_servers()
    producer = aiokafka.AIOKafkaProducer(
        **aiokafka_options(settings.kafka),
        acks="all",
        enable_idempotence=True,
        request_timeout_ms=round(DELIVERY_DEADLINE_S * 1000),
        compression_type=None if compression == "none" else compression,
        max_batch_size=BATCH_BYTES,
    )
    sent = _Deliveries(on_progress)
    writer = EventWriter(settings.fields)
    try:
        await producer.start()
        batches = _Batches(producer, settings.topics.interactions, partitions, sent)
        began = time.monotonic()
        due = 0
        for count, row in enumerate(rows):
            if count >= due:
                if rate is None:
                    due = count + BLOCK_EVENTS
                    await asyncio.sleep(0)  # the producer's own task has to run, too
                else:
                    await batches.send_all()
                    ahead_s = (count + 1) / rate - (time.monotonic() - began)
                    if ahead_s > 0:
                        await asyncio.sleep(max(TICK_S, ahead_s))
                    due = max(count + 1, int((time.monotonic() - began) * rate))
                await sent.settle(wait=False)
            await batches.add(row.user, writer.write(row), time.time_ns() // 1_000_000)
        await batches.send_all()
        await sent.settle(wait=True)
        seconds = time.monotonic() - began
    except (TimeoutError, KafkaTimeoutError) as exc:
        msg = (
            f"sending to {settings.topics.interactions} at {settings.kafka.bootstrap_servers}: "
            f"no confirmation for {DELIVERY_DEADLINE_S:g} s; {sent.records} events are delivered, "
            "some more may be"
        )
        raise BrokerUnavailable(msg) from exc
    finally:
        await _stop(producer)
    last_offsets = dict(sorted(sent.last_offsets.items()))
    return ReplayReport(records=sent.records, seconds=seconds, last_offsets=last_offsets)


async def _stop(producer: aiokafka.AIOKafkaProducer) -> None:
    """Stop a producer, also one that would try for ever to deliver what it still has."""
    try:
        await asyncio.wait_for(producer.stop(), STOP_DEADLINE_S)
    except TimeoutError:
        await producer.client.close()
