"""Faults of stock aiokafka, shown on a real Kafka, beside what answers them.

`pipeline.engine.compat.FAULTS` names each test here; those of Faust itself are in
`test_faust_faults.py`.
"""

import asyncio
import inspect
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from dataclasses import replace

import pytest
import uvloop
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer
from aiokafka.client import AIOKafkaClient, ConnectionGroup
from aiokafka.conn import AIOKafkaConnection
from aiokafka.consumer import fetcher
from aiokafka.record.memory_records import MemoryRecords
from aiokafka.structs import TopicPartition
from kafka.structs import TopicPartition as AdminTopicPartition

from pipeline.cluster.header_names import tolerate_bad_names
from pipeline.cluster.records import read_partitions
from pipeline.engine.chunks import fetch_chunks
from pipeline.engine.processor import DeadLetter
from pipeline.engine.sending import send_dead_letters
from pipeline.settings import Settings
from pipeline.worker.app import engine_options
from tests.bad_records import Raw, send_raw
from tests.faust_apps import engine_consumer, in_loop, until
from tests.kafka import admin_client, create_topic, send, send_transactions

MANY = 1 << 30
STOCK_SENDS = {
    name: inspect.unwrap(getattr(AIOKafkaConnection, name)) for name in ("send", "_send_sasl_token")
}


@pytest.fixture
def tp(settings: Settings) -> TopicPartition:
    """The one partition of a new topic."""
    topic = settings.topics.interactions
    create_topic(settings.kafka.bootstrap_servers, topic)
    return TopicPartition(topic, 0)


@asynccontextmanager
async def reading(settings: Settings, tp: TopicPartition) -> AsyncIterator[AIOKafkaConsumer]:
    """A consumer without a group at the start of the partition."""
    consumer = AIOKafkaConsumer(
        bootstrap_servers=settings.kafka.bootstrap_servers,
        isolation_level="read_committed",
        auto_offset_reset="earliest",
        enable_auto_commit=False,
        fetch_max_wait_ms=50,
    )
    await consumer.start()
    try:
        consumer.assign([tp])
        await consumer.seek_to_beginning(tp)
        yield consumer
    finally:
        await consumer.stop()


# --- live-active-set


@in_loop
async def test_stock_drains_every_partition_when_the_set_it_was_given_empties(
    settings: Settings, tp: TopicPartition
) -> None:
    """Faust hands aiokafka the very set from which it takes partitions when it pauses them."""
    async with reading(settings, tp) as consumer:
        active = {tp}
        fetch = asyncio.ensure_future(consumer._fetcher.fetched_records(active, timeout=10))
        await asyncio.sleep(0.1)
        active.clear()  # paused: as faust's Consumer.pause_partitions does
        await asyncio.to_thread(send, settings.kafka.bootstrap_servers, tp.topic, [(0, b"k", b"v")])

        assert [record.offset for record in (await fetch)[tp]] == [0]
        assert await consumer.position(tp) == 1  # gone: whoever resumes it never sees the record


@in_loop
async def test_a_partition_that_is_paused_while_its_fetch_waits_keeps_its_records(
    settings: Settings, tp: TopicPartition
) -> None:
    """Chunks are asked for by the set as it is when they come."""
    async with reading(settings, tp) as consumer:
        active = {tp}
        fetch = asyncio.ensure_future(fetch_chunks(consumer._fetcher, active, 1.0, MANY))
        await asyncio.sleep(0.1)
        active.clear()
        await asyncio.to_thread(send, settings.kafka.bootstrap_servers, tp.topic, [(0, b"k", b"v")])
        assert await fetch == {}

        active.add(tp)
        (chunk,) = (await fetch_chunks(consumer._fetcher, active, 5.0, MANY))[tp]

        assert (chunk.start, chunk.next_offset) == (0, 1)


# --- silent-reset


@in_loop
async def test_stock_begins_anew_at_the_start_of_a_log_that_lost_its_place(
    settings: Settings, tp: TopicPartition
) -> None:
    """Deleted records and an end that is gone: both times it reads on, and nothing is raised."""
    address = settings.kafka.bootstrap_servers
    await asyncio.to_thread(send, address, tp.topic, [(0, b"k", b"%d" % i) for i in range(10)])

    def delete() -> None:
        with admin_client(address) as admin:
            admin.delete_records({AdminTopicPartition(tp.topic, 0): 6})

    await asyncio.to_thread(delete)
    async with reading(settings, tp) as consumer:
        for lost in (2, 500):
            consumer.seek(tp, lost)
            assert (await asyncio.wait_for(consumer.getone(), 10)).offset == 6


# --- markers-uncommitted


@in_loop
async def test_stock_delivers_nothing_by_which_markers_could_be_acknowledged(
    settings: Settings, tp: TopicPartition
) -> None:
    """Its position goes over an aborted transaction; no record carries it there."""
    aborted = [(0, b"k", b"v")] * 3
    address = settings.kafka.bootstrap_servers
    await asyncio.to_thread(send_transactions, address, tp.topic, [(aborted, False)])
    async with reading(settings, tp) as consumer:
        assert await consumer.getmany(tp, timeout_ms=700) == {}
        assert await consumer.position(tp) == 4


@in_loop
async def test_markers_and_aborted_records_come_as_a_chunk_without_records(
    settings: Settings, tp: TopicPartition
) -> None:
    """It covers their offsets, so they are committed like any others."""
    aborted = [(0, b"k", b"v")] * 3
    address = settings.kafka.bootstrap_servers
    await asyncio.to_thread(send_transactions, address, tp.topic, [(aborted, False)])
    async with reading(settings, tp) as consumer:
        end = 0
        while end < 4:
            for chunk in (await fetch_chunks(consumer._fetcher, {tp}, 5.0, MANY))[tp]:
                assert (len(chunk), chunk.start) == (0, end)
                end = chunk.next_offset


# --- header-names


@in_loop
async def test_a_header_name_that_is_no_text_stops_a_stock_consumer_but_not_ours(
    settings: Settings, tp: TopicPartition, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Stock never gets past the batch; ours gives the name with escapes."""
    bad = Raw(key=b"k", value=b"v", headers=[(b"\xff", b"x")])
    await asyncio.to_thread(send_raw, settings.kafka.bootstrap_servers, tp.topic, [bad])

    monkeypatch.setattr(fetcher, "MemoryRecords", MemoryRecords)
    async with reading(settings, tp) as consumer:
        for _ in range(2):
            with pytest.raises(UnicodeDecodeError):
                await asyncio.wait_for(consumer.getone(), 10)
            consumer.seek(tp, 0)

    tolerate_bad_names()
    async with reading(settings, tp) as consumer:
        assert (await asyncio.wait_for(consumer.getone(), 10)).headers == (("\\xff", b"x"),)


# --- lost-connection


@pytest.mark.parametrize("ours", [False, True])
def test_a_lost_connection_ends_the_refreshing_of_a_stock_client_but_not_of_ours(
    settings: Settings, monkeypatch: pytest.MonkeyPatch, *, ours: bool
) -> None:
    """Metadata is asked for in the very turn of the loop in which the connection is lost."""
    for name, stock in STOCK_SENDS.items():
        monkeypatch.setattr(AIOKafkaConnection, name, stock)

    async def lose_and_refresh() -> None:
        if ours:  # a worker's consumer comes before any other client of its process
            consumer = engine_consumer(settings)
            await consumer._thread._create_worker_consumer(consumer.transport).stop()
            consumer._thread.thread_loop.close()
        client = AIOKafkaClient(bootstrap_servers=settings.kafka.bootstrap_servers)
        await client.bootstrap()
        try:
            (broker,) = client.cluster.brokers()
            assert await client.ready(broker.nodeId)
            connection = client._conns[broker.nodeId, ConnectionGroup.DEFAULT]
            lost = connection._protocol.connection_lost
            connection._protocol.connection_lost = lambda _: lost(ConnectionResetError())
            client.force_metadata_update()
            connection._writer.transport.abort()
            await asyncio.sleep(0.5)
            assert await asyncio.wait_for(client.force_metadata_update(), 3)
        finally:
            await client.close()

    if ours:
        uvloop.run(lose_and_refresh())
    else:
        with pytest.raises(RuntimeError, match="handler is closed") as ended:  # its task, by that
            uvloop.run(lose_and_refresh())
        assert isinstance(ended.value.__context__, TimeoutError)


# --- neither-key-nor-value


@in_loop
async def test_stock_sends_no_record_without_key_and_value_but_a_dead_letter_may_be_one(
    settings: Settings, tp: TopicPartition
) -> None:
    """A source may hold such a record; its dead letter has the same bytes: none."""
    producer = AIOKafkaProducer(bootstrap_servers=settings.kafka.bootstrap_servers)
    await producer.start()
    try:
        with pytest.raises(AssertionError):
            await producer.send(tp.topic, partition=0)
        letters = [DeadLetter(None, None, [("lrurec-reason", b"null_value")])]
        options = replace(engine_options(settings), dead_letters=tp.topic)
        await asyncio.gather(*await send_dead_letters(producer, options, 0, letters))
    finally:
        await producer.stop()

    (record,) = await asyncio.to_thread(
        lambda: list(read_partitions(settings.kafka, settings.topics.interactions))
    )
    assert (record.key, record.value) == (None, None)


# --- one-name-twice


@in_loop
async def test_stock_members_of_one_name_replace_each_other_again_and_again(
    settings: Settings, tp: TopicPartition
) -> None:
    """Neither names itself again after it joined, so neither is ever refused for good."""
    members = [
        AIOKafkaConsumer(
            tp.topic,
            bootstrap_servers=settings.kafka.bootstrap_servers,
            group_id=settings.worker.app_id,
            group_instance_id="one name",
            session_timeout_ms=6000,
            heartbeat_interval_ms=100,
            retry_backoff_ms=20,
        )
        for _ in range(2)
    ]
    names: list[set[str]] = [set(), set()]

    def both_joined_thrice() -> bool:
        for seen, member in zip(names, members, strict=True):
            seen.add(member._coordinator.member_id)
        return all(len(seen - {""}) >= 3 for seen in names)

    try:
        for member in members:
            await member.start()
        await until(both_joined_thrice, "each joined three times under one name")
    finally:
        await asyncio.gather(*[member.stop() for member in members])
