"""Faults of how stock Faust fails, stops and waits, beside what the engine does in the same place.

The others of Faust's are in `test_faust_faults.py`.
"""

import asyncio
import subprocess
import sys
import time
from dataclasses import replace
from typing import Any

import pytest
from faust.types import TP

from pipeline.engine.stop import ExitCode
from pipeline.settings import Settings, settings_flags
from tests.faust_apps import (
    NEVER_S,
    OffsetProcessor,
    committed,
    committed_offset,
    engine_app,
    engine_consumer,
    idle,
    in_loop,
    started,
    stock_app,
    stock_consumer,
    write,
)
from tests.worker_process import ROOT

# --- take-loses, crash-commits


@in_loop
async def test_stock_acknowledges_a_batch_whose_agent_failed_and_reads_nothing_behind_it(
    one: Settings,
) -> None:
    """All of it ends up as committed; most of it was never delivered."""
    await asyncio.to_thread(write, one, 200)
    done: list[int] = []

    async def fail(stream: Any) -> None:
        async for events in stream.take_events(20, within=0.05):
            if events[-1].message.offset >= 40:
                msg = "told to fail"
                raise RuntimeError(msg)
            done.extend(event.message.offset for event in events)

    app = stock_app(one, fail, broker_commit_interval=0.1)
    async with started(app):
        async with asyncio.timeout(20):
            while (await committed(one) or 0) <= 40:
                await asyncio.sleep(0.05)
        end = await committed(one)

    assert len(done) <= 40 < (end or 0)


def run_failing(settings: Settings, who: str) -> subprocess.CompletedProcess[str]:
    """An app in its own process, which fails there."""
    return subprocess.run(
        [sys.executable, "-m", "tests.faust_apps", who, *settings_flags(settings)],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=120,  # stock takes its time to go down, a busy machine longer
        check=False,
    )


def test_stock_acknowledges_what_is_in_work_when_any_part_of_it_crashes(one: Settings) -> None:
    """Its way down cancels the agent, and cancelling one acknowledges the batch that it holds."""
    write(one, 20)

    done = run_failing(one, "stock")

    assert done.returncode, done.stderr
    assert "told to fail" in done.stderr
    assert "finished" not in done.stdout
    assert committed_offset(one)  # of a batch of which not one was done


@pytest.mark.parametrize("where", ["processor", "task", "metadata"])
def test_an_engine_that_fails_ends_at_once_and_commits_nothing(one: Settings, where: str) -> None:
    """In a batch, or in any part of Faust's or its client's beside it; all is read again."""
    write(one, 200)
    settings = replace(one, worker=replace(one.worker, checkpoint_interval_s=NEVER_S))

    done = run_failing(settings, where)

    assert done.returncode == ExitCode.BUG, done.stderr[-2000:]
    assert committed_offset(one) in (None, 0)  # 0: where reading began


# --- second-of-sleep


@in_loop
async def test_stock_sleeps_a_second_while_nothing_is_active(nowhere: Settings) -> None:
    """However soon there is something to do."""
    consumer = stock_consumer(nowhere)
    consumer.resume_flow()
    consumer._set_active_tps(set())
    tp = TP(nowhere.topics.interactions, 0)
    began_s = time.monotonic()
    wait = asyncio.ensure_future(consumer._wait_next_records(1.0))
    await asyncio.sleep(0.05)
    consumer.resume_partitions({tp})
    await wait
    assert time.monotonic() - began_s > 0.95


@in_loop
async def test_a_partition_that_flows_again_wakes_the_consumer(nowhere: Settings) -> None:
    """It is asked for at once."""
    consumer = engine_consumer(nowhere)
    consumer.resume_flow()
    consumer._set_active_tps(set())
    asked = asyncio.Event()

    async def fetch(active_partitions: Any, timeout: float) -> Any:
        asked.set()
        return {}

    consumer._getmany = fetch
    wait = asyncio.ensure_future(consumer._wait_next_records(1.0))
    await asyncio.sleep(0.05)
    assert not asked.is_set()
    began_s = time.monotonic()
    consumer.resume_partitions({TP(nowhere.topics.interactions, 0)})
    await wait

    assert asked.is_set()
    assert time.monotonic() - began_s < 0.5


async def seconds_of_table_start(app: Any) -> float:
    took_s: list[float] = []
    start = app.tables.on_start

    async def timed() -> None:
        began_s = time.monotonic()
        await start()
        took_s.append(time.monotonic() - began_s)

    app.tables.on_start = timed
    async with started(app):
        return took_s[0]


@in_loop
async def test_stock_sleeps_a_second_at_a_start(one: Settings) -> None:
    """Before it looks at its tables; whatever was assigned waits meanwhile."""
    assert await seconds_of_table_start(stock_app(one, idle)) >= 0.95


@in_loop
async def test_tables_start_at_once(one: Settings) -> None:
    """Nothing is waited for."""
    assert await seconds_of_table_start(engine_app(one, OffsetProcessor())) < 0.5
