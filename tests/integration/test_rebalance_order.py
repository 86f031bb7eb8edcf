"""What a worker does in a rebalance, in which order: written down by a real one, on a real Kafka.

One worker runs in the tests' process, with its seams recorded; the other, which joins and leaves,
is a process of its own.
"""

import asyncio
import dataclasses
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Any

import pytest
from aiokafka.consumer.group_coordinator import CoordinatorGroupRebalance
from prometheus_client import CollectorRegistry

from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import create_topics
from pipeline.engine.app import EngineApp
from pipeline.metrics import Metrics
from pipeline.settings import MetricsSettings, Settings
from pipeline.worker.app import create_app
from pipeline.worker.catalogue import Catalogue
from pipeline.worker.served_model import ModelHolder
from pipeline.worker.users import Users
from state.rocks import RocksStore
from tests.bad_records import click
from tests.faust_apps import NEVER_S, committed, in_loop, started, until
from tests.kafka import free_port, send
from tests.worker_process import running_worker

USERS = 5  # of each partition
PARTITIONS = 4
Step = tuple[str, Any]


class Recorder:
    """Writes down what an app does.

    Attributes:
        steps: (what, of which partition or how many), oldest first.
        gate: While it is not set, fencing waits, as it would for a slow broker.
    """

    def __init__(self, app: EngineApp, monkeypatch: pytest.MonkeyPatch) -> None:
        self.steps: list[Step] = []
        self.gate = asyncio.Event()
        self.gate.set()
        stream, consumer = app.stream_service, app.consumer
        log = self.steps.append
        join = CoordinatorGroupRebalance.perform_group_join

        async def joined(rebalance: Any) -> Any:
            log(("JoinGroup", None))
            return await join(rebalance)

        monkeypatch.setattr(CoordinatorGroupRebalance, "perform_group_join", joined)
        self._around(consumer, "stop_flow", before=lambda: log(("flow stops", None)))
        self._around(
            stream, "drain", after=lambda _: log(("drained", stream.has_work() or in_work(app)))
        )
        points = stream.checkpointer
        self._around(
            points,
            "_checkpoint",
            before=lambda part: log(("checkpoint begins", part.number)),
            after=lambda _, part: log(("checkpoint", part.number)),
        )
        self._around(consumer, "commit", after=lambda _: log(("commit", None)))
        self._around(
            consumer,
            "perform_seek",
            before=lambda: log(("seek", consumer.fetching)),
            after=lambda _: log(("sought", None)),
        )
        self._around(stream, "add", after=lambda _, part: log(("restored", part.number)))
        self._around(
            stream,
            "add",
            before=lambda part: log(
                (f"rows of {part.number}", len(list(stream.store.scan(part.number))))
            ),
        )
        self._around(stream, "offer", before=lambda event: log(("chunk", event.message.partition)))
        self._around(
            consumer,
            "resume_partitions",
            before=lambda tps: [log(("flows", tp.partition)) for tp in tps],
        )
        fence = points.fence

        async def fenced(number: int) -> Any:
            await self.gate.wait()
            part = await fence(number)
            log(("fenced", number))
            return part

        points.fence = fenced  # type: ignore[method-assign]

    @staticmethod
    def _around(
        owner: Any,
        name: str,
        *,
        before: Callable[..., object] = lambda *args: None,
        after: Callable[..., object] = lambda *args: None,
    ) -> None:
        call = getattr(owner, name)
        if asyncio.iscoroutinefunction(call):

            async def recorded(*args: Any) -> Any:
                before(*args)
                result = await call(*args)
                after(result, *args)
                return result

        else:

            def recorded(*args: Any) -> Any:  # type: ignore[misc]
                before(*args)
                result = call(*args)
                after(result, *args)
                return result

        setattr(owner, name, recorded)

    def at(self, what: str, which: object = None, *, behind: int = -1) -> int:
        """Where a step first stands behind a place; fails where it does not."""
        places = [i for i, step in enumerate(self.steps) if step == (what, which) and i > behind]
        assert places, (what, which, behind, self.steps)
        return places[0]


def in_work(app: EngineApp) -> bool:
    """Whether chunks of partitions that are not lost wait for a checkpoint."""
    return any(part.events and not part.lost for part in app.stream_service.partitions.values())


@pytest.fixture
def stream(settings: Settings) -> Settings:
    """Topics, and checkpoints that only a rebalance takes."""
    create_topics(settings)
    return dataclasses.replace(
        settings,
        worker=dataclasses.replace(settings.worker, checkpoint_interval_s=NEVER_S),
    )


@asynccontextmanager
async def worker(settings: Settings, registry: CollectorRegistry) -> AsyncIterator[EngineApp]:
    """A worker's app in this process, not started; without a release."""
    store = RocksStore(settings.worker.data_dir / "states", settings.store)
    app = create_app(
        dataclasses.replace(
            settings, worker=dataclasses.replace(settings.worker, stop_deadline_s=NEVER_S)
        ),
        store,
        ModelHolder(),
        Catalogue(),
        Users(),
        Metrics(registry),
        partitions=PARTITIONS,
    )
    try:
        yield app
    finally:
        store.close_all()


def other(settings: Settings) -> Settings:
    """Settings of a second worker of the group."""
    worker_settings = dataclasses.replace(
        settings.worker,
        data_dir=settings.worker.data_dir.parent / "other" / "worker",
        checkpoint_interval_s=0.1,
    )
    return dataclasses.replace(
        settings, worker=worker_settings, metrics=MetricsSettings(port=free_port())
    )


async def clicks(settings: Settings, partitions: set[int]) -> None:
    """One event of every user of these partitions."""
    records = [
        (number, b"u", click(f"user-{number}-{i}", "item"))
        for number in sorted(partitions)
        for i in range(USERS)
    ]
    servers, topic = settings.kafka.bootstrap_servers, settings.topics.interactions
    await asyncio.to_thread(send, servers, topic, records)


async def answers(settings: Settings) -> int:
    """How many recommendations there are."""
    return await asyncio.to_thread(
        lambda: sum(1 for _ in read_partitions(settings.kafka, settings.topics.recommendations))
    )


async def until_answered(settings: Settings, n: int) -> None:
    async with asyncio.timeout(20):
        while await answers(settings) < n:
            await asyncio.sleep(0.05)


def usable(app: EngineApp) -> set[int]:
    return set(app.stream_service.partitions)


def hot_reads(registry: CollectorRegistry) -> dict[str, float]:
    """How often a row was found in memory, and how often not."""
    return {
        result: registry.get_sample_value("lrurec_hot_row_reads_total", {"result": result}) or 0.0
        for result in ("hit", "miss")
    }


@in_loop
async def test_a_join_runs_in_the_order_that_loses_nothing(
    stream: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Work in flight, last checkpoint, commit, JoinGroup; seek with nothing in flight; flow.

    Partitions that stay flow at once, with the rows that they have.
    """
    registry = CollectorRegistry()
    everything = set(range(PARTITIONS))
    async with worker(stream, registry) as app, started(app):
        await until(lambda: usable(app) == everything, "all partitions")
        await clicks(stream, everything)
        await until_answered(stream, PARTITIONS * USERS)
        record = Recorder(app, monkeypatch)
        with running_worker(other(stream)) as joining:
            await until(lambda: len(usable(app)) == 2, "a join", 60.0)
            kept = usable(app)
            await until(lambda: ("flows", max(kept)) in record.steps, "kept partitions")
            order = list(record.steps)

            leave = record.at("flow stops")
            drained = record.at("drained", False)  # nothing in work any more
            assert leave < drained
            for number in everything:  # also what leaves: the last of it is durable
                assert leave < record.at("checkpoint", number) < drained
            commit = record.at("commit", behind=drained)
            joined = record.at("JoinGroup")
            assert drained < commit < joined
            seek, sought = record.at("seek", 0), record.at("sought")  # 0 fetches are under way
            assert joined < seek < sought
            assert not [step for step in order[leave:sought] if step[0] == "chunk"]
            for number in kept:
                assert sought < record.at("flows", number)
            assert not {step[0] for step in order} & {"fenced", "restored"}
            for number in everything - kept:
                assert ("flows", number) not in order
                assert await committed(stream, number) == USERS

            before = hot_reads(registry)
            await clicks(stream, kept)
            await until_answered(stream, (PARTITIONS + 2) * USERS)
            after = hot_reads(registry)
            assert after["hit"] - before["hit"] == 2 * USERS  # each row was still there
            assert after["miss"] == before["miss"]
            joining.kill()


@in_loop
async def test_a_gained_partition_is_fenced_then_restored_then_flows(
    stream: Settings, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Those that were there before wait for none of it."""
    everything = set(range(PARTITIONS))
    async with worker(stream, CollectorRegistry()) as app, started(app):
        await until(lambda: usable(app) == everything, "all partitions")
        with running_worker(other(stream)) as leaving:
            await until(lambda: len(usable(app)) == 2, "a join", 60.0)
            kept = usable(app)
            gained = everything - kept
            await asyncio.to_thread(leaving.wait_until_ready)
            await clicks(stream, everything)
            await until_answered(stream, PARTITIONS * USERS)
            record = Recorder(app, monkeypatch)
            record.gate.clear()

            assert await asyncio.to_thread(leaving.stop) == 0
            await until(lambda: ("flows", min(kept)) in record.steps, "kept partitions")
            await clicks(stream, everything)
            await until_answered(stream, (PARTITIONS + 2) * USERS)

            assert not {step[0] for step in record.steps} & {"fenced", "restored"}
            assert usable(app) == kept
            record.gate.set()
            await until_answered(stream, 2 * PARTITIONS * USERS)

    sought = record.at("sought")
    for number in gained:
        fenced, restored = record.at("fenced", number), record.at("restored", number)
        flows, chunk = record.at("flows", number), record.at("chunk", number)
        assert sought < fenced < restored < flows < chunk
        assert record.at(f"rows of {number}", USERS) < flows
