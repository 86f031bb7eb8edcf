"""Helpers for tests that speak to a real Kafka."""

import time
import uuid
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

from kafka import KafkaAdminClient

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


def wait_until(condition: Callable[[], object], what: str, deadline_s: float = 30.0) -> None:
    """Poll until the condition holds; fail with `what` was waited for after the deadline."""
    deadline = time.monotonic() + deadline_s
    while not condition():
        assert time.monotonic() < deadline, f"waited {deadline_s:g} s in vain: {what}"
        time.sleep(0.05)
