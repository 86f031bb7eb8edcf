"""Helpers for tests that speak to a real Kafka."""

import asyncio
import socket
import threading
import time
import uuid
from collections.abc import Callable, Iterable, Iterator
from contextlib import ExitStack, contextmanager, suppress
from pathlib import Path

import aiokafka
from kafka import KafkaAdminClient

from pipeline.cluster.records import end_offsets
from pipeline.settings import (
    BrokerSettings,
    KafkaSettings,
    MetricsSettings,
    Settings,
    TopicSettings,
    TrainerSettings,
    WorkerSettings,
)


def unique_settings(address: str, folder: Path, *, partitions: int = 4) -> Settings:
    """Settings that share no topic, group, application id or folder with any other test."""
    prefix = f"t{uuid.uuid4().hex[:12]}"
    names = ("interactions", "recommendations", "dead_letters", "models", "items", "users")
    return Settings(
        kafka=KafkaSettings(bootstrap_servers=address),
        topics=TopicSettings(
            **{name: f"{prefix}.{name.replace('_', '-')}.v1" for name in names},
            partitions=partitions,
        ),
        worker=WorkerSettings(app_id=f"{prefix}-recommender", data_dir=folder / "worker"),
        trainer=TrainerSettings(releases_dir=folder / "releases"),
        metrics=MetricsSettings(port=0),
        broker=BrokerSettings(data_dir=folder / "broker", port=0),
    )


def remove_traces(settings: Settings) -> None:
    """Delete every topic that begins like the settings' own, and the groups likewise."""
    prefix = settings.topics.interactions.partition(".")[0]
    with admin_client(settings.kafka.bootstrap_servers) as admin:
        topics = [name for name in admin.list_topics() if name.startswith(prefix)]
        if topics:
            admin.delete_topics(topics)
        groups = [g["group_id"] for g in admin.list_groups() if g["group_id"].startswith(prefix)]
        if groups:
            # A group whose member was just killed is not empty yet: it is left to expire.
            admin.delete_groups(groups)


@contextmanager
def admin_client(address: str) -> Iterator[KafkaAdminClient]:
    """An admin client that is closed at the end."""
    admin = KafkaAdminClient(bootstrap_servers=address)
    try:
        yield admin
    finally:
        admin.close()


def free_port() -> int:
    """A port that nothing listens on now."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


@contextmanager
def silent_server() -> Iterator[str]:
    """The address of a machine that is off: what asks for a connection is never answered.

    So does Linux where a queue of connections that nobody takes is full.
    """
    with ExitStack() as stack:
        server = stack.enter_context(socket.create_server(("127.0.0.1", 0), backlog=0))
        address: tuple[str, int] = server.getsockname()
        for _ in range(3):
            client = stack.enter_context(socket.socket())
            client.setblocking(False)
            client.connect_ex(address)
        yield f"{address[0]}:{address[1]}"


class Way:
    """A port that leads to another one, until it is shut; it may be opened again.

    Args:
        address: Where it leads.
    """

    def __init__(self, address: str) -> None:
        host, port = address.rsplit(":", 1)
        self._to = host, int(port)
        self._port = free_port()
        self._ends: list[socket.socket] = []
        self.address = f"127.0.0.1:{self._port}"
        self.open()

    def open(self) -> None:
        self._server = socket.create_server(("127.0.0.1", self._port))
        threading.Thread(target=self._accept, args=(self._server,), daemon=True).start()

    def shut(self) -> None:
        """Refuse what comes, and cut what is open."""
        self._server.shutdown(socket.SHUT_RDWR)
        self._server.close()
        while self._ends:
            with suppress(OSError), self._ends.pop() as end:
                end.shutdown(socket.SHUT_RDWR)

    def _accept(self, server: socket.socket) -> None:
        with suppress(OSError):
            while True:
                near, _ = server.accept()
                far = socket.create_connection(self._to)
                self._ends += [near, far]
                for ends in ((near, far), (far, near)):
                    threading.Thread(target=self._carry, args=ends, daemon=True).start()

    def _carry(self, source: socket.socket, target: socket.socket) -> None:
        with suppress(OSError):
            while data := source.recv(65536):
                target.sendall(data)
            target.shutdown(socket.SHUT_WR)


def committed_lag(settings: Settings) -> int:
    """How many source offsets the worker's group has not committed."""
    ends = end_offsets(settings.kafka, settings.topics.interactions)
    with admin_client(settings.kafka.bootstrap_servers) as admin:
        found = admin.list_group_offsets({settings.worker.app_id: None})[settings.worker.app_id]
    committed = {
        tp.partition: at.offset
        for tp, at in found.items()
        if tp.topic == settings.topics.interactions
    }
    return sum(end - max(0, committed.get(partition, 0)) for partition, end in ends.items())


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = 60.0) -> None:
    """Poll until the condition holds; fail with `what` was waited for after the deadline."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain: {what}"
        time.sleep(0.05)


def create_topic(
    address: str, name: str, *, partitions: int = 1, config: dict[str, str] | None = None
) -> None:
    """Create one topic and wait until it can be used."""
    options = {"num_partitions": partitions, "replication_factor": 1, "configs": config or {}}
    with admin_client(address) as admin:
        admin.create_topics({name: options}, wait_for_metadata=True)


def send(
    address: str,
    topic: str,
    records: Iterable[tuple[int, bytes | None, bytes | None]],
    *,
    compression: str | None = None,
) -> None:
    """Send (partition, key, value) records, in order within each partition, and await them all."""

    async def run() -> None:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=address, enable_idempotence=True, compression_type=compression
        )
        await producer.start()
        try:
            await asyncio.gather(
                *[
                    await producer.send(topic, key=key, value=value, partition=partition)
                    for partition, key, value in records
                ]
            )
        finally:
            await producer.stop()

    asyncio.run(run())


def send_transactions(
    address: str,
    topic: str,
    transactions: Iterable[tuple[list[tuple[int, bytes | None, bytes | None]], bool]],
) -> None:
    """Send each list of (partition, key, value) records in one transaction; False aborts it."""

    async def run() -> None:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=address, transactional_id=uuid.uuid4().hex
        )
        await producer.start()
        try:
            for records, commit in transactions:
                await producer.begin_transaction()
                for partition, key, value in records:
                    future = await producer.send(topic, key=key, value=value, partition=partition)
                    await future
                await (producer.commit_transaction() if commit else producer.abort_transaction())
        finally:
            await producer.stop()

    asyncio.run(run())
