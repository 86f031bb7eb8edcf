"""Reading topics whole: every record once, whatever stands at the end of a partition."""

import asyncio
import logging
import re
import threading
import time
from dataclasses import replace
from pathlib import Path

import aiokafka
import pytest
from kafka import TopicPartition

from pipeline.cluster.clients import aiokafka_options, faust_credentials, kafka_python_options
from pipeline.cluster.records import end_offsets, first_offsets, read_partitions
from pipeline.errors import BrokerUnavailable, TopicMismatch
from pipeline.settings import Settings
from pipeline.worker.releases import TopicFollower
from tests.bad_records import Raw, send_raw
from tests.kafka import (
    admin_client,
    create_topic,
    send,
    send_transactions,
    silent_server,
    wait_until,
)

BatchOfRecords = list[tuple[int, bytes | None, bytes | None]]


@pytest.fixture
def topic(settings: Settings) -> str:
    """An empty topic of two partitions."""
    create_topic(settings.kafka.bootstrap_servers, settings.topics.interactions, partitions=2)
    return settings.topics.interactions


def numbered(partition: int, numbers: range) -> BatchOfRecords:
    """Records whose values are the numbers."""
    return [(partition, b"k", b"%d" % number) for number in numbers]


def values_by_partition(
    settings: Settings, topic: str, start: dict[int, int] | None = None, *, committed: bool = True
) -> dict[int, list[int]]:
    """Everything that a full read brings, as numbers, in the order it came."""
    found: dict[int, list[int]] = {0: [], 1: []}
    for record in read_partitions(settings.kafka, topic, start, committed=committed):
        assert record.value is not None
        found[record.partition].append(int(record.value))
    return found


def test_an_empty_topic_reads_as_nothing(settings: Settings, topic: str) -> None:
    """No record, no waiting."""
    assert values_by_partition(settings, topic) == {0: [], 1: []}
    assert end_offsets(settings.kafka, topic) == {0: 0, 1: 0}


@pytest.mark.parametrize("compression", [None, "gzip", "snappy", "lz4", "zstd"])
def test_every_record_comes_once_and_in_order(
    settings: Settings, topic: str, compression: str | None
) -> None:
    """Partitions keep their order, under each compression that a producer may have chosen."""
    records = numbered(0, range(2000)) + numbered(1, range(500))
    send(settings.kafka.bootstrap_servers, topic, records, compression=compression)

    assert values_by_partition(settings, topic) == {0: list(range(2000)), 1: list(range(500))}
    assert end_offsets(settings.kafka, topic) == {0: 2000, 1: 500}


def test_reading_starts_where_it_is_told(settings: Settings, topic: str) -> None:
    """A partition that is not named is read from its first record; one at its end is not read."""
    records = numbered(0, range(10)) + numbered(1, range(10))
    send(settings.kafka.bootstrap_servers, topic, records)

    assert values_by_partition(settings, topic, {0: 7}) == {0: [7, 8, 9], 1: list(range(10))}
    assert values_by_partition(settings, topic, {0: 10, 1: 9}) == {0: [], 1: [9]}


def test_records_that_retention_removed_are_skipped(settings: Settings, topic: str) -> None:
    """A start below the first record that exists is moved up to it."""
    send(settings.kafka.bootstrap_servers, topic, numbered(0, range(10)))
    with admin_client(settings.kafka.bootstrap_servers) as admin:
        admin.delete_records({TopicPartition(topic, 0): 6})

    assert first_offsets(settings.kafka, topic) == {0: 6, 1: 0}
    assert values_by_partition(settings, topic, {0: 2}) == {0: [6, 7, 8, 9], 1: []}


def test_a_reader_of_committed_records_sees_no_aborted_one(settings: Settings, topic: str) -> None:
    """Transactions leave markers at the end of a partition; a read ends there all the same."""
    send_transactions(
        settings.kafka.bootstrap_servers,
        topic,
        [
            (numbered(0, range(5)) + numbered(1, range(3)), True),
            (numbered(0, range(100, 110)), False),
            (numbered(0, range(5, 7)), True),
            (numbered(1, range(200, 205)), False),
        ],
    )

    began = time.monotonic()
    assert values_by_partition(settings, topic) == {0: list(range(7)), 1: [0, 1, 2]}
    assert time.monotonic() - began < 5
    everything = values_by_partition(settings, topic, committed=False)
    assert everything[0] == [*range(5), *range(100, 110), 5, 6]
    assert everything[1] == [0, 1, 2, *range(200, 205)]


def test_a_partition_of_markers_alone_reads_as_nothing(settings: Settings, topic: str) -> None:
    """Offsets without any record a reader may see do not make it wait."""
    send_transactions(settings.kafka.bootstrap_servers, topic, [(numbered(0, range(3)), False)] * 2)

    began = time.monotonic()
    assert values_by_partition(settings, topic) == {0: [], 1: []}
    assert values_by_partition(settings, topic, {0: 7}) == {0: [], 1: []}
    assert time.monotonic() - began < 5


def test_an_open_transaction_ends_a_committed_read(settings: Settings, topic: str) -> None:
    """What may still be aborted is not read and not waited for."""
    address = settings.kafka.bootstrap_servers
    send(address, topic, numbered(0, range(4)))
    sent, done = threading.Event(), threading.Event()

    async def hold_a_transaction_open() -> None:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=address, transactional_id=f"{topic}-open"
        )
        await producer.start()
        await producer.begin_transaction()
        await producer.send_and_wait(topic, b"99", partition=0)
        sent.set()
        await asyncio.to_thread(done.wait, 30)
        await producer.abort_transaction()
        await producer.stop()

    holder = threading.Thread(target=lambda: asyncio.run(hold_a_transaction_open()))
    holder.start()
    try:
        assert sent.wait(20)
        assert values_by_partition(settings, topic) == {0: [0, 1, 2, 3], 1: []}
        assert end_offsets(settings.kafka, topic, committed=True)[0] == 4
        assert end_offsets(settings.kafka, topic)[0] == 5
    finally:
        done.set()
        holder.join()


def test_records_that_come_in_during_a_read_are_left_for_the_next(
    settings: Settings, topic: str
) -> None:
    """The ends are those of the moment when reading began."""
    address = settings.kafka.bootstrap_servers
    send(address, topic, numbered(0, range(3)))
    reading = read_partitions(settings.kafka, topic)

    first = next(reading)
    send(address, topic, numbered(0, range(3, 6)))

    assert [first.offset, *(record.offset for record in reading)] == [0, 1, 2]


def test_a_read_can_be_given_up(settings: Settings, topic: str) -> None:
    """Closing the generator early leaves no connection behind (a warning would fail this)."""
    send(settings.kafka.bootstrap_servers, topic, numbered(0, range(100)))
    reading = read_partitions(settings.kafka, topic)
    next(reading)

    reading.close()

    assert list(reading) == []


@pytest.mark.parametrize("stored", ["producer", "zstd"])
def test_a_follower_hears_what_a_read_brings(settings: Settings, stored: str) -> None:
    """Under every compression, with any header name, and nothing of an aborted transaction.

    A broker may compress what came plain.
    """
    address, topic = settings.kafka.bootstrap_servers, settings.topics.items
    create_topic(address, topic, config={"compression.type": stored})
    send(address, topic, [(0, b"before its start", b"{}"), (0, b"before it", b"{}")])
    heard: list[bytes | None] = []
    follower = TopicFollower(settings, topic, lambda record: heard.append(record.key), {0: 1})
    follower.start()

    for codec in (None, "gzip", "snappy", "lz4", "zstd"):
        send(address, topic, [(0, f"{codec}".encode(), b"x" * 1000)], compression=codec)
    odd = [Raw(key=b"a name", value=b"{}", headers=[(b"\xff\xfe", b"")])]
    send_raw(address, topic, odd)
    send_transactions(
        address,
        topic,
        [([(0, b"aborted", b"{}")], False), ([(0, b"committed", None)], True)],
    )

    wait_until(lambda: b"committed" in heard, "the last record", 20)
    began = time.monotonic()
    follower.stop()
    assert time.monotonic() - began < 1
    assert heard == [record.key for record in read_partitions(settings.kafka, topic, {0: 1})]
    assert heard[0] == b"before it"
    assert len(heard) == 8


def test_a_missing_topic_is_named_and_not_made(settings: Settings) -> None:
    """Asking for a topic that is not there is an error, and does not create it."""
    with pytest.raises(TopicMismatch, match=f"topic {settings.topics.items}: .*topics create"):
        list(read_partitions(settings.kafka, settings.topics.items))

    with admin_client(settings.kafka.bootstrap_servers) as admin:
        assert settings.topics.items not in admin.list_topics()


@pytest.mark.parametrize("address", ["127.0.0.1:9", "no..name:9"])
def test_no_kafka_ends_a_read_after_its_deadline(settings: Settings, address: str) -> None:
    """One line that names the address, and nothing else in the log."""
    kafka = replace(settings.kafka, bootstrap_servers=address, connect_timeout_s=0.3)

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=re.escape(address)) as caught:
        list(read_partitions(kafka, "any"))

    assert 0.3 <= time.monotonic() - began < 3
    assert "\n" not in str(caught.value)


def test_a_server_that_is_silent_holds_nobody_up(settings: Settings, topic: str) -> None:
    """A machine that is off, named beside one that answers; clients choose by chance."""
    send(settings.kafka.bootstrap_servers, topic, numbered(0, range(3)))
    with silent_server() as silent:
        servers = f"{silent},{settings.kafka.bootstrap_servers}"
        both = replace(settings, kafka=replace(settings.kafka, bootstrap_servers=servers))

        for _ in range(5):
            began = time.monotonic()
            assert values_by_partition(both, topic) == {0: [0, 1, 2], 1: []}
            assert time.monotonic() - began < 5


def test_servers_that_are_all_silent_end_a_read_after_its_deadline(settings: Settings) -> None:
    """Together, not one after the other."""
    with silent_server() as one, silent_server() as other:
        kafka = replace(settings.kafka, bootstrap_servers=f"{one},{other}", connect_timeout_s=1.0)

        began = time.monotonic()
        with pytest.raises(BrokerUnavailable, match=rf"no Kafka .*{one}: .*{other}: "):
            list(read_partitions(kafka, "any"))
        assert time.monotonic() - began < 2.5


def test_a_password_never_reaches_the_log(
    settings: Settings, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Client libraries log their configuration; ours holds passwords that print as stars."""
    (tmp_path / "password").write_text("s3cret\n")
    kafka = replace(
        settings.kafka,
        security_protocol="SASL_PLAINTEXT",
        username="me",
        password_file=tmp_path / "password",
    )
    caplog.set_level(logging.DEBUG)

    options = aiokafka_options(kafka)
    logging.getLogger().debug("options %s", kafka_python_options(kafka))

    assert options["sasl_plain_password"] == "s3cret"
    assert faust_credentials(kafka).password == "s3cret"
    assert "s3cret" not in caplog.text + repr(options) + repr(faust_credentials(kafka))
