"""What the consumer's thread tells Kafka and makes of its answers; Kafka's client stands aside."""

import asyncio
from types import SimpleNamespace
from typing import Any

import pytest
from aiokafka.errors import (
    CommitFailedError,
    ConsumerStoppedError,
    IllegalStateError,
    RequestTimedOutError,
)
from aiokafka.structs import OffsetAndMetadata, TopicPartition
from faust.types import TP

from pipeline.engine import consumer_thread
from pipeline.engine.consumer_thread import ConsumerThread

NEW, OLD = TP("clicks", 0), TP("clicks", 1)


class Ended(Exception):
    """The process would have ended."""


class Client:
    """Stands in for aiokafka's consumer: writes down what it is told."""

    def __init__(self) -> None:
        self.told: list[tuple[str, Any]] = []
        self.error: Exception | None = None
        self._closed = False
        self._fetcher = SimpleNamespace(_closed=False)

    async def commit(self, offsets: dict[TopicPartition, OffsetAndMetadata]) -> None:
        if self.error is not None:
            raise self.error
        self.told.append(("commit", offsets))

    def seek(self, tp: TopicPartition, offset: int) -> None:
        self.told.append(("seek", (tp, offset)))


@pytest.fixture
def client() -> Client:
    return Client()


@pytest.fixture
def thread(client: Client, monkeypatch: pytest.MonkeyPatch) -> ConsumerThread:
    """A thread that was never started; what would end the process raises."""

    def end(_: BaseException, doing: str) -> None:
        raise Ended(doing)

    monkeypatch.setattr(consumer_thread, "end_by", end)
    made: Any = ConsumerThread.__new__(ConsumerThread)
    made.consumer = SimpleNamespace(
        note=lambda tp: f"mark-{tp.partition}", found_notes={}, flow_active=True
    )
    made.app = SimpleNamespace(engine_options=SimpleNamespace(changelog="states"))
    made.tp_last_committed_at = {}
    made._ensure_consumer = lambda: client
    return made


def test_a_commit_names_the_changelog_of_its_partition(
    thread: ConsumerThread, client: Client
) -> None:
    """Each with its own; then it is known when it was made."""
    is_committed = asyncio.run(thread._commit({NEW: 7, OLD: 9}))

    assert is_committed
    assert client.told == [
        ("commit", {NEW: OffsetAndMetadata(7, "mark-0"), OLD: OffsetAndMetadata(9, "mark-1")})
    ]
    assert set(thread.tp_last_committed_at) == {NEW, OLD}


@pytest.mark.parametrize("error", [CommitFailedError(), IllegalStateError()])
def test_a_commit_to_a_group_that_moved_on_was_not_made(
    thread: ConsumerThread, client: Client, error: Exception
) -> None:
    """The records are read again by whoever has them now; this worker goes on."""
    client.error = error

    assert asyncio.run(thread._commit({OLD: 9})) is False
    assert thread.tp_last_committed_at == {}


def test_a_commit_that_kafka_refuses_ends_the_worker(
    thread: ConsumerThread, client: Client
) -> None:
    """What came of it is unknown: the next start asks."""
    client.error = RequestTimedOutError()

    with pytest.raises(Ended, match="committing what was read"):
        asyncio.run(thread._commit({OLD: 9}))


def test_where_a_new_partition_begins_is_committed_before_it_is_read(
    thread: ConsumerThread, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """One that has a commit is not committed again, and what its commit notes is kept."""

    async def found(_: Client, tps: list[TopicPartition], changelog: str) -> Any:
        assert (tps, changelog) == ([NEW, OLD], "states")
        return {OLD: 9}, {NEW: 3}, {OLD: b"of-before"}

    monkeypatch.setattr(consumer_thread, "find_positions", found)

    positions = asyncio.run(thread.seek_sources([NEW, OLD]))

    first, *seeks = client.told
    assert positions == {NEW: 3, OLD: 9}
    assert first == ("commit", {NEW: OffsetAndMetadata(3, "mark-0")})
    assert sorted(seeks) == [("seek", (NEW, 3)), ("seek", (OLD, 9))]
    assert thread.consumer.found_notes == {OLD: b"of-before"}


def test_no_partition_to_seek_asks_kafka_nothing(
    thread: ConsumerThread, client: Client, monkeypatch: pytest.MonkeyPatch
) -> None:
    """As a worker of the group that got none."""
    monkeypatch.setattr(consumer_thread, "find_positions", None)

    assert asyncio.run(thread.seek_sources([])) == {}
    assert client.told == []


def test_nothing_is_fetched_while_the_flow_is_stopped(
    thread: ConsumerThread, client: Client
) -> None:
    """Not even by a client that is closed, which is no news then."""
    thread.consumer.flow_active = False
    client._closed = True

    assert asyncio.run(thread._fetch_records(client, {NEW})) == {}


@pytest.mark.parametrize("closed", ["client", "fetcher"])
def test_a_closed_client_is_said_to_be(thread: ConsumerThread, client: Client, closed: str) -> None:
    """Whoever reads from it stops, instead of waiting for records."""
    if closed == "client":
        client._closed = True
    else:
        client._fetcher._closed = True

    with pytest.raises(ConsumerStoppedError):
        asyncio.run(thread._fetch_records(client, {NEW}))


def test_a_wait_for_records_is_ended_once(thread: ConsumerThread) -> None:
    """A second time, or with none under way, changes nothing."""

    async def wake_twice() -> bool:
        thread.wake()
        waiter: asyncio.Future[None] = asyncio.get_running_loop().create_future()
        thread._note_waiter(waiter)
        thread.wake()
        thread.wake()
        return waiter.done()

    assert asyncio.run(wake_twice())


@pytest.mark.parametrize(
    ("error", "ends"), [(None, False), (asyncio.CancelledError(), False), (OSError("x"), True)]
)
def test_metadata_that_is_refreshed_no_more_ends_the_worker(
    thread: ConsumerThread, error: BaseException | None, ends: bool
) -> None:
    """Not where the task is over because of a stop."""

    async def refresh() -> None:
        if error is not None:
            raise error

    async def run() -> bool:
        task = asyncio.ensure_future(refresh())
        await asyncio.wait([task])
        try:
            consumer_thread._end_if_failed(task)
        except Ended:
            return True
        return False

    assert asyncio.run(run()) is ends
