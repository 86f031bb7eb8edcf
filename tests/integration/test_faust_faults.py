"""Faults of stock Faust, shown by stock Faust, beside what the engine does in the same place.

`pipeline.engine.compat.FAULTS` names each test here; those of aiokafka are in
`test_faust_faults_clients.py`. Where a fault needs many joins to strike, its mechanism is shown in
stock's own classes.
"""

import asyncio
import contextlib
import time
from collections.abc import AsyncIterator
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import Any

import pytest
from aiokafka.errors import InvalidProducerEpoch, ProducerFenced
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import changelog_name
from pipeline.engine.partitions import Checkpointer
from pipeline.engine.transport import Consumer
from pipeline.settings import Settings
from pipeline.worker.app import engine_options
from state.memory import MemoryStore
from tests.faust_apps import (
    NEVER_S,
    OffsetProcessor,
    committed,
    deliver,
    engine_app,
    engine_consumer,
    idle,
    in_loop,
    started,
    stock_app,
    stock_consumer,
    stock_message,
    until,
    write,
)

# --- holes-after-rebalance


def recorded(base: type, log: list[str]) -> type:
    """A consumer that writes down the order of an assignment."""

    class Recorded(base):  # type: ignore[misc]
        def resume_partitions(self, tps: Any) -> None:
            if any(not self._is_changelog_tp(tp) for tp in tps):
                log.append("resumed")
            super().resume_partitions(tps)

        async def perform_seek(self) -> None:
            log.append("seek")
            await super().perform_seek()
            log.append("sought")

        def resume_flow(self) -> None:
            log.append("flow")
            super().resume_flow()

    return Recorded


async def assignment_order(app: Any, base: type) -> list[str]:
    log: list[str] = []
    app.transport.Consumer = recorded(base, log)
    empty = app.flow_control.clear
    app.flow_control.clear = lambda: (log.append("queues emptied"), empty())
    async with started(app):
        await until(lambda: "flow" in log, "an assignment flows")
        await until(lambda: "resumed" in log, "partitions flow")
        return list(log)


@in_loop
async def test_stock_resumes_partitions_before_it_seeks_them(one: Settings) -> None:
    """And empties the queues, of whatever came meanwhile, behind the seek."""
    app = stock_app(one, idle)
    app.Table("users", partitions=1)

    order = await assignment_order(app, driver.Consumer)

    assert order.index("resumed") < order.index("seek")
    assert "queues emptied" in order[order.index("sought") :]


@in_loop
async def test_partitions_flow_only_behind_their_seek(one: Settings) -> None:
    """Nothing is delivered between an assignment and the committed offsets."""
    order = await assignment_order(engine_app(one, OffsetProcessor()), Consumer)

    assert order.index("sought") < order.index("flow")
    assert order.index("sought") < order.index("resumed")
    assert order.index("queues emptied") < order.index("flow")


@in_loop
async def test_stock_books_what_a_stale_fetch_jumped_over_as_processed(nowhere: Settings) -> None:
    """Committed 5; a fetch from before the seek brings 9, then 5 to 10 are read again.

    Stock's own intake, acknowledgement and commit; only what is fetched is given.
    """
    consumer = stock_consumer(nowhere)
    tp = TP(nowhere.topics.interactions, 0)
    processed: list[int] = []

    async def fetched(timeout: float) -> AsyncIterator[tuple[TP, Any]]:
        offsets = [9, *range(5, 11)] if not processed else []
        for offset in offsets:
            yield tp, stock_message(consumer, tp, offset)
        if not offsets:
            fetcher._stopped.set()

    async def process(message: Any) -> None:
        processed.append(message.offset)
        consumer.ack(message)

    consumer.getmany, consumer.callback = fetched, process
    consumer._committed_offset[tp], consumer._read_offset[tp] = 5, 5
    fetcher = consumer.app._fetcher

    await consumer._drain_messages(fetcher)

    assert set(processed) == {9, 10}
    assert consumer._new_offset(tp) == 10  # nobody reads 5 to 8 any more


# --- gap-commit, commit-past-unacked


@in_loop
async def test_stock_books_a_gap_as_acknowledged(nowhere: Settings) -> None:
    """Whatever the reason of the gap."""
    consumer, tp = stock_consumer(nowhere), TP(nowhere.topics.interactions, 0)
    messages = {offset: stock_message(consumer, tp, offset) for offset in (0, 1, 7)}
    await consumer._add_gap(tp, 2, 7 - 1)
    for message in messages.values():
        consumer.ack(message)

    assert consumer._new_offset(tp) == 8


@in_loop
async def test_a_gap_is_never_committed(nowhere: Settings) -> None:
    """The engine's consumer books nothing by itself."""
    consumer, tp = engine_consumer(nowhere), TP(nowhere.topics.interactions, 0)
    first = deliver(consumer, tp, 0, 2)
    await consumer._add_gap(tp, 2, 6)
    first.acked = True

    assert consumer._new_offset(tp) == 2
    assert consumer._new_offset(tp) is None


@in_loop
async def test_stock_commits_past_a_message_in_work(nowhere: Settings) -> None:
    """Committed 5, 5 in work, 6 to 8 done: it commits 9."""
    consumer, tp = stock_consumer(nowhere), TP(nowhere.topics.interactions, 0)
    consumer._committed_offset[tp] = 5
    messages = [stock_message(consumer, tp, offset) for offset in range(5, 9)]
    for message in messages[1:]:
        consumer.ack(message)

    assert not messages[0].acked
    assert consumer._new_offset(tp) == 9


@in_loop
async def test_a_chunk_in_work_holds_the_commit_back(nowhere: Settings) -> None:
    """Until it is done, however many behind it are."""
    consumer, tp = engine_consumer(nowhere), TP(nowhere.topics.interactions, 0)
    consumer._committed_offset[tp] = 5
    first, *others = [deliver(consumer, tp, offset, offset + 1) for offset in range(5, 9)]
    for message in others:
        message.acked = True

    assert consumer._new_offset(tp) is None
    first.acked = True
    assert consumer._new_offset(tp) == 9


# --- commit-behind-commit


def hold_first_commit(consumer: Any) -> asyncio.Event:
    """Let the first commit wait, as a slow broker would; the event lets it go."""
    gate, commit, held = asyncio.Event(), consumer._commit, []

    async def wait_first(offsets: Any) -> Any:
        if not held:
            held.append(True)
            await gate.wait()
        return await commit(offsets)

    consumer._commit = wait_first
    return gate


@in_loop
async def test_stock_does_not_commit_behind_a_commit_that_is_under_way(one: Settings) -> None:
    """Its caller is told so by False, which no caller looks at."""
    await asyncio.to_thread(write, one, 2)
    events: list[Any] = []

    async def keep(stream: Any) -> None:
        async for event in stream.events():
            event.message.incref()
            events.append(event)

    app = stock_app(one, keep, broker_commit_interval=NEVER_S)
    async with started(app):
        await until(lambda: len(events) == 2, "both records")
        gate = hold_first_commit(app.consumer)
        events[0].ack()
        running = asyncio.ensure_future(app.consumer.commit())
        await asyncio.sleep(0)
        events[1].ack()
        last = asyncio.ensure_future(app.consumer.commit())
        await asyncio.sleep(0.05)
        gate.set()

        assert (await running, await last) == (True, False)
        assert await committed(one) == 1
        await app.consumer.commit()  # lets the app stop


@in_loop
async def test_a_last_commit_is_made_whatever_is_under_way(one: Settings) -> None:
    """`wait_empty` comes back when all that is acknowledged is committed."""
    settings = replace(one, worker=replace(one.worker, checkpoint_interval_s=NEVER_S))
    processor = OffsetProcessor()
    app = engine_app(settings, processor, broker_commit_interval=NEVER_S)
    async with started(app):
        await asyncio.to_thread(write, one, 1)
        await until(lambda: app.stream_service.partitions[0].events, "a chunk to checkpoint")
        part = app.stream_service.partitions[0]
        await app.stream_service.checkpointer.checkpoint(part)
        gate = hold_first_commit(app.consumer)
        running = asyncio.ensure_future(app.consumer.commit())
        await asyncio.to_thread(write, one, 1, 1)
        await until(lambda: part.events, "another")
        last = asyncio.ensure_future(app.consumer.wait_empty())
        await until(lambda: not part.events, "a last checkpoint")
        await asyncio.sleep(0.05)
        gate.set()
        await asyncio.gather(running, last)

        assert await committed(one) == 2


# --- zombie-writes


@in_loop
async def test_stock_writes_the_changelog_of_a_partition_that_another_worker_owns(
    one: Settings,
) -> None:
    """Nothing tells the broker that it may not."""
    owner, other = (stock_app(one, idle) for _ in range(2))
    tables = [
        app.Table("users", partitions=1, key_type=bytes, value_type=bytes) for app in (owner, other)
    ]
    async with started(owner):
        await until(lambda: owner.tables.actives_ready, "an owner")
        await other.producer.start()  # it never joined: it owns nothing
        topic = tables[1].changelog_topic
        await (
            await topic.send(
                key=b"u", value=b"old", partition=0, key_serializer="raw", value_serializer="raw"
            )
        )
        await other.producer.stop()

    (record,) = await asyncio.to_thread(
        lambda: list(read_partitions(one.kafka, changelog_name(one.worker.app_id)))
    )
    assert record.value == b"old"


def checkpointer(settings: Settings, threads: ThreadPoolExecutor) -> Checkpointer:
    return Checkpointer(
        engine_options(settings),
        OffsetProcessor(),
        MemoryStore(),
        compute=threads,
        disk=threads,
        on_checkpoint=lambda rows, seconds: None,
        at_stage=lambda stage: None,
    )


@in_loop
async def test_a_former_owner_cannot_write_the_changelog(one: Settings) -> None:
    """From the moment on at which the next one fenced it."""
    with ThreadPoolExecutor(1) as threads:
        former, present = checkpointer(one, threads), checkpointer(one, threads)
        old = await former.fence(0)
        await former.log_rows(old, [(b"u", b"1")])
        new = await present.fence(0)
        try:
            with pytest.raises((ProducerFenced, InvalidProducerEpoch)):
                await former.log_rows(old, [(b"u", b"old")])
            await present.log_rows(new, [(b"u", b"2")])
        finally:
            await asyncio.gather(old.producer.stop(), new.producer.stop(), return_exceptions=True)

    rows = await asyncio.to_thread(
        lambda: list(read_partitions(one.kafka, changelog_name(one.worker.app_id), committed=True))
    )
    assert [row.value for row in rows] == [b"1", b"2"]


# --- stop-in-rebalance


async def returns_from_rebalance_of_a_stopped_app(consumer: Any) -> bool:
    """Whether the consumer's thread gets away from a rebalance that the main loop left alone."""
    await consumer._method_queue.start()
    await consumer._method_queue.stop()  # as a stop of the consumer does
    call = asyncio.ensure_future(
        consumer.threadsafe_partitions_revoked(asyncio.get_running_loop(), set())
    )
    await asyncio.sleep(0.1)
    assert not call.done()
    consumer.app._stopped.set()
    done, _ = await asyncio.wait([call], timeout=1.0)
    call.cancel()
    return bool(done)


@in_loop
async def test_stock_waits_for_ever_in_a_rebalance_that_a_stop_overtook(nowhere: Settings) -> None:
    """Its thread asks the main loop, which answers nothing any more; so no LeaveGroup either."""
    assert not await returns_from_rebalance_of_a_stopped_app(stock_consumer(nowhere))


@in_loop
async def test_a_stop_ends_the_wait_of_a_rebalance(nowhere: Settings) -> None:
    """The thread asks only while the app goes on."""
    assert await returns_from_rebalance_of_a_stopped_app(engine_consumer(nowhere))


# --- flush-gives-up


@in_loop
async def test_stock_gives_up_a_flush_with_records_unsent(one: Settings) -> None:
    """Here the broker knows no such topic yet; a slow one would do."""
    app = stock_app(one, idle)
    await app.producer.start()
    missing = app.topic(
        "missing-" + one.topics.interactions, key_serializer="raw", value_serializer="raw"
    )
    for _ in range(10):
        app.producer.send_soon(missing.as_future_message(key=b"k", value=b"v"))
    started_s = time.monotonic()

    await app.producer.flush()

    assert time.monotonic() - started_s < 1
    assert app.producer.buffer.size >= 9
    with contextlib.suppress(RuntimeError):  # it cannot be stopped with records unsent
        await app.producer.stop()


@in_loop
async def test_a_chunk_is_acknowledged_only_when_its_outputs_are_safe(one: Settings) -> None:
    """However long a broker takes for them."""

    class Event:
        acked = False

        def ack(self) -> None:
            self.acked = True

    with ThreadPoolExecutor(1) as threads:
        points = checkpointer(one, threads)
        part, event, output = await points.fence(0), Event(), asyncio.Future()
        part.events, part.confirmations = [event], [output]
        checkpoint = asyncio.ensure_future(points.checkpoint(part))
        await asyncio.sleep(0.3)
        acked_before = event.acked
        output.set_result(None)
        await checkpoint
        await part.producer.stop()

    assert (acked_before, event.acked) == (False, True)
