"""What becomes of the engine where its start is cut off: by a stop, or by a rebalance."""

import asyncio
import gc
import logging
import random
from collections.abc import Callable
from typing import Any

import pytest
from aiokafka import AIOKafkaConsumer, AIOKafkaProducer

from pipeline.cluster.topics import create_topics
from pipeline.engine.clients import start_client
from pipeline.settings import Settings
from tests.faust_apps import OffsetProcessor, engine_app, in_loop, started, until
from tests.kafka import send

CUTS = 40
LATEST_CUT_S = 0.01


def transactional(address: str) -> Any:
    return AIOKafkaProducer(bootstrap_servers=address, transactional_id="cut-off")


def consumer(address: str) -> Any:
    return AIOKafkaConsumer(bootstrap_servers=address, group_id=None)


@pytest.mark.parametrize("make", [transactional, consumer])
def test_a_client_whose_start_is_cut_off_leaves_nothing_open(
    settings: Settings, make: Callable[[str], Any]
) -> None:
    """At any moment: Python would complain of the connection once it is collected."""
    rng = random.Random(1)
    complaints: list[dict[str, Any]] = []

    async def cut_off() -> int:
        asyncio.get_running_loop().set_exception_handler(lambda _, what: complaints.append(what))
        cut = 0
        for _ in range(CUTS):
            client = make(settings.kafka.bootstrap_servers)
            start = asyncio.ensure_future(start_client(client))
            await asyncio.sleep(rng.uniform(0, LATEST_CUT_S))
            cut += start.cancel()
            await asyncio.wait([start])
            if not start.cancelled():
                await client.stop()
        del client, start
        gc.collect()
        return cut

    cut = asyncio.run(cut_off())

    assert cut > 1
    assert complaints == []


@in_loop
async def test_an_engine_that_has_long_run_complains_of_nothing(
    settings: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """Nobody fetches the changelog's partitions, and an idle topic is no fault."""
    create_topics(settings)
    app = engine_app(settings, OffsetProcessor())
    async with started(app):
        await until(lambda: len(app.consumer.assignment()) == 2 * settings.topics.partitions, "all")
        thread = app.consumer._thread
        thread.time_started -= 3600
        assigned = thread._ensure_consumer()._fetcher._subscriptions.subscription.assignment
        for tp in assigned.tps:  # most of the changelog's are paused before their first fetch
            assigned.state_value(tp).timestamp = None
        await app.consumer.verify_all_partitions_active()

    from_services = [line for line in caplog.records if line.name.startswith("faust")]
    assert [line for line in from_services if line.levelno >= logging.WARNING] == []


@in_loop
async def test_a_rebalance_in_the_middle_of_a_start_leaves_an_engine_that_works(
    settings: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Half started, it would take records for ever and finish none."""
    create_topics(settings)
    processor = OffsetProcessor()
    app = engine_app(settings, processor)
    restore, stream = app.tables.recovery, app.stream_service
    begun, gate, start = asyncio.Event(), asyncio.Event(), stream.on_start

    async def slow_start() -> None:  # as with a slow broker
        begun.set()
        await gate.wait()
        await start()

    monkeypatch.setattr(stream, "on_start", slow_start)
    starting = asyncio.ensure_future(app.start())  # waits for its first assignment
    try:
        await until(begun.is_set, "an assignment")
        assigned = app.consumer.assignment()

        restore.on_partitions_revoked(assigned)
        await restore.on_rebalance(assigned, assigned, assigned, app.consumer_generation_id)
        gate.set()

        await until(lambda: len(stream.partitions) == 4, "all partitions")
        records = [(number, b"user", b"row") for number in range(4)]
        await asyncio.to_thread(
            send, settings.kafka.bootstrap_servers, settings.topics.interactions, records
        )
        await until(lambda: len(processor.seen) == 4, "all records")
    finally:
        await starting
        await app.stop()
