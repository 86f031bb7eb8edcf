"""A Kafka that is not there, goes away, is set up otherwise or damaged: one line or a long life."""

import asyncio
import dataclasses
import hashlib
import os
import signal
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from aiokafka import AIOKafkaProducer

from pipeline.cluster import broker
from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import create_topics
from pipeline.engine.processor import DeadLetter
from pipeline.engine.sending import send_dead_letters
from pipeline.engine.stop import ExitCode
from pipeline.settings import MetricsSettings, Settings
from pipeline.verification.verify import verify
from pipeline.worker.app import engine_options
from pipeline.worker.releases import announce
from tests.bad_records import click, free_port, history_lengths, last_words, run_worker
from tests.kafka import (
    admin_client,
    committed_lag,
    create_topic,
    send,
    unique_settings,
    wait_until,
)
from tests.releases import random_release
from tests.worker_process import running_worker

ITEMS = [f"item-{i}" for i in range(12)]
AWAY_S = 10.0


def test_without_a_broker_a_worker_ends_in_one_line(tmp_path: Path) -> None:
    """Within the time it was given, with what to do."""
    settings = unique_settings("127.0.0.1:9", tmp_path)

    code, (line,) = run_worker(settings, "--kafka.connect-timeout-s", "0.5")

    assert code == 1
    assert line.startswith("lrurec worker: no Kafka within 0.5 s")
    assert "lrurec broker start" in line


def test_another_partition_count_ends_a_worker_in_one_line(settings: Settings) -> None:
    """States and answers have to be where the events are."""
    create_topic(settings.kafka.bootstrap_servers, settings.topics.recommendations, partitions=3)
    name = settings.topics.interactions
    create_topic(settings.kafka.bootstrap_servers, name, partitions=2)

    code, (line,) = run_worker(settings)

    assert code == 1
    assert f"partitions: expected 2, as {name} has, got 3" in line


def test_two_workers_of_one_name_do_not_fight_for_ever(settings: Settings) -> None:
    """The one that is replaced learns of it and ends in one line."""
    first = dataclasses.replace(
        settings,
        kafka=dataclasses.replace(settings.kafka, group_instance_id="twin"),
        metrics=MetricsSettings(port=free_port()),
    )
    folder = settings.worker.data_dir.parent / "second" / "worker"
    second = dataclasses.replace(
        first,
        worker=dataclasses.replace(settings.worker, data_dir=folder),
        metrics=MetricsSettings(port=free_port()),
    )
    create_topics(first)

    with running_worker(first) as one:
        one.wait_until_ready()
        with running_worker(second):
            assert one.wait() == ExitCode.NAME_TAKEN

    assert "another worker runs under the name twin" in last_words(one)


def send_letters(settings: Settings, *turns: list[DeadLetter]) -> None:
    """Send letters as a worker does, each turn's once the one before is safe."""

    async def run() -> None:
        address = settings.kafka.bootstrap_servers
        producer = AIOKafkaProducer(bootstrap_servers=address, enable_idempotence=True)
        await producer.start()
        try:
            for letters in turns:
                sent = await send_dead_letters(producer, engine_options(settings), 0, letters)
                await asyncio.gather(*sent)
        finally:
            await producer.stop()

    asyncio.run(run())


def test_a_letter_is_large_by_many_small_headers_too(settings: Settings) -> None:
    """Each costs bytes beside its name and its value, which the topic may refuse."""
    address, topic = settings.kafka.bootstrap_servers, settings.topics.dead_letters
    create_topic(address, topic, config={"max.message.bytes": "800000"})
    headers = [("", None)] * 450_000  # 900,000 bytes, of which zstd makes some hundred

    send_letters(settings, [DeadLetter(b"k", b"", headers)])

    (letter,) = read_partitions(settings.kafka, topic)
    assert (letter.key, letter.value, len(letter.headers)) == (b"k", b"", len(headers))


def test_a_session_that_the_brokers_do_not_allow_ends_a_worker_in_one_line(
    settings: Settings,
) -> None:
    """It says which setting is wrong; it waited without a word until its start took too long."""
    create_topics(settings)

    code, lines = run_worker(settings, "--kafka.session-timeout-s", "7200")

    assert code == ExitCode.KAFKA
    assert "joining the group: Kafka did not answer or refused (InvalidSession" in lines[-1]
    assert "set kafka.session_timeout_s to what the brokers allow" in lines[-1]


def test_a_letter_that_is_refused_leaves_without_its_record(settings: Settings) -> None:
    """It says what it is of; those before, beside and behind it are complete.

    So is one that fits by zstd alone, whose window reaches back to where its bytes stood before.
    """
    address, topic = settings.kafka.bootstrap_servers, settings.topics.dead_letters
    create_topic(address, topic, config={"max.message.bytes": "800000"})
    large, place = os.urandom(1_000_000), [("lrurec-offset", b"7")]
    values = [b"0", b"1", os.urandom(300_000) * 60, b"2"]
    good = [DeadLetter(b"k", value, [("own", None)], place) for value in values]

    send_letters(
        settings,
        good[:1],
        [good[1], DeadLetter(b"key", large, [("own", b"1")], place), good[2]],
        [DeadLetter(None, None, [("own", large)], place), good[3]],
    )

    complete, told = [], []
    for record in read_partitions(settings.kafka, topic):
        headers = dict(record.headers)
        assert headers.pop("lrurec-offset") == b"7"
        (complete if "own" in headers else told).append((record.key, record.value, headers))
    assert complete == [(b"k", value, {"own": None}) for value in values]
    sizes = [(b"3", b"1000000", b"4", large), (b"-1", b"-1", b"1000003", b"")]
    assert told == [
        (
            None,
            None,
            {
                "lrurec-key-bytes": key,
                "lrurec-value-bytes": value,
                "lrurec-headers-bytes": headers,
                "lrurec-value-sha256": hashlib.sha256(content).hexdigest().encode(),
            },
        )
        for key, value, headers, content in sizes
    ]


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Settings]:
    """A Kafka of this test alone, which it may end and start."""
    settings = unique_settings(f"127.0.0.1:{broker.free_port()}", tmp_path)
    port = int(settings.kafka.bootstrap_servers.rpartition(":")[2])
    settings = dataclasses.replace(
        settings,
        broker=dataclasses.replace(settings.broker, port=port),
        metrics=MetricsSettings(port=free_port()),
    )
    broker.start(settings.broker)
    try:
        yield settings
    finally:
        broker.stop(settings.broker)


def test_a_broker_may_go_away_and_return(own_broker: Settings) -> None:
    """Nothing is lost and all is answered after a crash of the broker and 10 s without one.

    If the topic itself goes away, the worker says so and ends.
    """
    settings = own_broker
    address, topic = settings.kafka.bootstrap_servers, settings.topics.interactions
    create_topics(settings)
    announce(settings, random_release(settings.trainer.releases_dir, ITEMS))

    def clicks(round_: int) -> list[tuple[int, bytes, bytes]]:
        return [
            (user % 4, b"k", click(f"user-{user}", ITEMS[(user + i + round_) % 12]))
            for i in range(25)
            for user in range(40)
        ]

    def all_have(n: int) -> None:
        expected = {f"user-{user}": n for user in range(40)}
        wait_until(lambda: history_lengths(settings) == expected, f"{n} each", 60)

    with running_worker(settings) as worker:
        worker.wait_until_ready()
        send(address, topic, clicks(0))
        info = broker.status(settings.broker)
        assert info is not None
        os.kill(info.pid, signal.SIGKILL)
        wait_until(lambda: not worker.is_ready(), "a worker that says so", AWAY_S)
        assert worker.metric("lrurec_ready") == 0
        time.sleep(AWAY_S)
        assert worker.process.poll() is None
        broker.start(settings.broker)
        all_have(25)
        wait_until(lambda: committed_lag(settings) == 0, "a commit that nothing new asks for")
        send(address, topic, clicks(1))
        all_have(50)
        worker.wait_until_ready()
        assert worker.metric("lrurec_ready") == 1
        announce(settings, random_release(settings.trainer.releases_dir, ITEMS, version=2))
        loaded = 'lrurec_model_swaps_total{result="loaded"}'
        wait_until(lambda: worker.metric(loaded) == 2, "a release after the return")
        report = verify(settings)
        assert report.holds, report.findings

        with admin_client(address) as admin:
            send(address, topic, clicks(2))  # of which a commit is on its way
            admin.delete_topics([topic])
        assert worker.wait() == ExitCode.TOPICS
    assert f"topic {topic}: partitions: expected 4" in last_words(worker)
