"""A load without rest, from a process of its own, and how long each event waited for its answer.

An event's own time is when it was sent. Kafka stamps a recommendation when it arrives (after
`stamp_arrivals`), so the delay between them is what a consumer sees, whatever the worker believes.
"""

import asyncio
import itertools
import multiprocessing
import random
import time
from collections.abc import Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from typing import Any, NamedTuple

import aiokafka
import msgspec
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.partitioner.default import murmur2

from pipeline.cluster.clients import kafka_admin
from pipeline.cluster.records import end_offsets, read_partitions
from pipeline.settings import Settings
from tests.benchmarks.bench_pipeline import interactions
from tests.kafka import wait_until

TICK_S = 0.005
Click = tuple[int, bytes, bytes]  # partition, user, item


def users_in_turn(partitions: int, users: int, items: Sequence[str]) -> Iterator[Click]:
    """Every user once, then again: the partitions take turns."""
    rng = random.Random(0)
    for number in itertools.count():
        user = number % users
        yield user % partitions, b"user-%d" % user, rng.choice(items).encode()


def bundled_shuffled(partitions: int, copies: int) -> Iterator[Click]:
    """The bundled purchases in any order, of as many copies of each user; without end."""
    rng = random.Random(0)
    rows = [(user, value.split(b'"item_id":"')[1].split(b'"')[0]) for user, value in interactions()]
    while True:
        rng.shuffle(rows)
        for user, item in rows:
            key = b"%b~%d" % (user, rng.randrange(copies))
            yield (murmur2(key) & 0x7FFFFFFF) % partitions, key, item


async def _send(
    address: str, topic: str, clicks: Iterable[Click], rate: float | None, stopping: Any
) -> None:
    """Send what is due every few milliseconds; all at once, as fast as it goes, without a rate."""
    producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address, max_batch_size=250_000)
    await producer.start()
    clicks = iter(clicks)
    try:
        started_s, sent = time.monotonic(), 0
        while not stopping.is_set():
            due = 1000 if rate is None else int((time.monotonic() - started_s) * rate) - sent
            some = list(itertools.islice(clicks, min(due, 1000)))
            if not some and due > 0:
                break
            sent += len(some)
            now_ms = time.time_ns() // 1_000_000
            batches: dict[int, Any] = {}
            for partition, user, item in some:
                if partition not in batches:
                    batches[partition] = producer.create_batch()
                value = b'{"user_id":"%b","item_id":"%b","timestamp_ms":%d}' % (user, item, now_ms)
                batches[partition].append(timestamp=now_ms, key=user, value=value)
            for partition, batch in batches.items():
                batch.close()
                await producer.send_batch(batch, topic, partition=partition)
            if rate is not None:
                await asyncio.sleep(TICK_S)
        await producer.flush()
    finally:
        await producer.stop()


class _Never:
    def is_set(self) -> bool:
        return False


def send_all(settings: Settings, clicks: Iterable[Click]) -> None:
    """Send them as fast as it goes, here and now."""
    address, topic = settings.kafka.bootstrap_servers, settings.topics.interactions
    asyncio.run(_send(address, topic, clicks, None, _Never()))


def _run(
    settings: Settings, rate: float, source: Any, arguments: tuple[Any, ...], going: Any, done: Any
) -> None:
    """The process of a load."""
    clicks = source(settings.topics.partitions, *arguments)
    first = next(clicks)  # what it needs is read and shuffled
    going.set()
    address, topic = settings.kafka.bootstrap_servers, settings.topics.interactions
    asyncio.run(_send(address, topic, itertools.chain([first], clicks), rate, done))


@contextmanager
def steady_load(
    settings: Settings, rate: float, source: Any, *arguments: Any
) -> Iterator[multiprocessing.process.BaseProcess]:
    """Send `source(partitions, *arguments)` at a rate until the end of the block."""
    spawn = multiprocessing.get_context("spawn")
    going, done = spawn.Event(), spawn.Event()
    process = spawn.Process(
        target=_run, args=(settings, rate, source, arguments, going, done), daemon=True
    )
    process.start()
    try:
        wait_until(going.is_set, "the load's process", 60)
        yield process
    finally:
        done.set()
        process.join(30)
        if process.is_alive():
            process.kill()


# --- answers


class _Position(msgspec.Struct, frozen=True):
    partition: int
    offset: int
    timestamp_ms: int


class _Answer(msgspec.Struct, frozen=True):
    event: _Position


def set_topic(settings: Settings, topic: str, config: Mapping[str, str]) -> None:
    """Change a topic's settings."""
    with kafka_admin(settings.kafka) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, dict(config))])


def stamp_arrivals(settings: Settings) -> None:
    """Let Kafka stamp recommendations when they arrive."""
    topic = settings.topics.recommendations
    set_topic(settings, topic, {"message.timestamp.type": "LogAppendTime"})


class Wait(NamedTuple):
    """What one event waited for its answer, and when it was sent."""

    delay_s: float
    sent_s: float


class Delays:
    """What each event waited for its first answer.

    Every event of an interval has to be another user's: a micro-batch answers a user once.

    Args:
        settings: Where events and recommendations are.
    """

    def __init__(self, settings: Settings) -> None:
        self._settings = settings
        self._positions = end_offsets(settings.kafka, settings.topics.recommendations)
        self._answered: dict[int, dict[int, Wait]] = {}

    def catch_up(self, deadline_s: float = 60.0) -> None:
        """Read until everything that was sent until now is answered.

        Raises:
            AssertionError: Something was not in time.
        """
        kafka, topics = self._settings.kafka, self._settings.topics
        ends = end_offsets(kafka, topics.interactions)
        decoder = msgspec.json.Decoder(_Answer)

        def all_there() -> bool:
            for record in read_partitions(kafka, topics.recommendations, self._positions):
                event = decoder.decode(record.value).event
                sent_s = event.timestamp_ms / 1000
                wait = Wait(record.timestamp / 1000 - sent_s, sent_s)
                answered = self._answered.setdefault(event.partition, {})
                answered.setdefault(event.offset, wait)  # the first counts
                self._positions[record.partition] = record.offset + 1
            found = self._answered
            return all(max(found.get(p, {-1: 0})) >= end - 1 for p, end in ends.items() if end)

        wait_until(all_there, f"an answer to everything before {ends}", deadline_s)

    def worst(self, since_s: float, until_s: float) -> dict[int, Wait]:
        """Return each partition's longest wait of an event that was sent in the interval.

        Args:
            since_s: Unix time.
            until_s: Unix time.

        Raises:
            AssertionError: An event has no answer.
        """
        worst = {}
        for partition, answered in self._answered.items():
            some = {
                offset: wait
                for offset, wait in answered.items()
                if since_s <= wait.sent_s < until_s
            }
            if some:
                missing = max(some) - min(some) + 1 - len(some)
                assert not missing, f"partition {partition}: {missing} events without an answer"
                worst[partition] = max(some.values())
        return worst
