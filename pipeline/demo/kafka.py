"""The Kafka of a demo: a local one of its own, or topics of its own on a given cluster."""

import logging
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import dataclass, replace
from pathlib import Path

import psutil
import torch
from kafka.errors import KafkaError

from pipeline.cluster.broker import free_port, running_broker
from pipeline.cluster.clients import kafka_admin
from pipeline.cluster.topics import create_topics, existing_topics
from pipeline.errors import PipelineError
from pipeline.settings import KafkaSettings, Settings

_log = logging.getLogger(__name__)


@dataclass(frozen=True)
class DemoKafka:
    """A Kafka with all topics, new and empty.

    Attributes:
        settings: Those that lead to it.
        description: What it is, in a line.
        process: The local broker's; None for a given cluster.
        log_file: The local broker's.
    """

    settings: Settings
    description: str
    process: psutil.Process | None = None
    log_file: Path | None = None

    def why_ended(self) -> str | None:
        """Say that the local broker is gone, if it is."""
        process = self.process
        if process is None:
            return None
        if process.is_running() and process.status() != psutil.STATUS_ZOMBIE:
            return None
        return f"Kafka (process {process.pid}) has ended; its log: {self.log_file}"


def demo_settings(settings: Settings, folder: Path, *, time_budget_s: float) -> Settings:
    """Return settings that keep to a folder and to free ports, so that nobody else is disturbed.

    Args:
        settings: What they are made of.
        folder: For everything that is written.
        time_budget_s: Time for the training, where the settings leave it open.
    """
    budget_s = settings.training.time_budget_s or time_budget_s
    # Kafka and the replay are on the same machine and need a core, too.
    threads = settings.worker.threads or max(1, torch.get_num_threads() // 2)
    return replace(
        settings,
        broker=replace(settings.broker, data_dir=folder / "broker", port=0),
        worker=replace(settings.worker, data_dir=folder / "worker", threads=threads),
        trainer=replace(settings.trainer, releases_dir=folder / "releases"),
        metrics=replace(settings.metrics, host="127.0.0.1", port=free_port()),
        recommend=replace(settings.recommend, prequential=True),
        training=replace(settings.training, time_budget_s=budget_s),
    )


@contextmanager
def demo_kafka(settings: Settings) -> Iterator[DemoKafka]:
    """Have a Kafka for the length of a `with` block.

    A cluster that the settings name is used, with topics and a group that are of this run alone and
    are removed at the end; else a local broker is started, and stopped at the end.

    Raises:
        PipelineError: It cannot be had.
    """
    if settings.kafka.bootstrap_servers != KafkaSettings().bootstrap_servers:
        with _own_topics(settings) as own:
            yield own
        return
    with running_broker(settings.broker) as info:
        kafka = replace(settings.kafka, bootstrap_servers=info.address)
        led = replace(settings, kafka=kafka)
        topics = create_topics(led)
        yield DemoKafka(
            led,
            f"version {info.version} at {info.address}, {len(topics)} topics",
            psutil.Process(info.pid),
            info.log_file,
        )


@contextmanager
def _own_topics(settings: Settings) -> Iterator[DemoKafka]:
    prefix = f"lrurec-demo-{time.time_ns() // 1_000_000}"
    topics = replace(
        settings.topics,
        interactions=f"{prefix}.interactions.v1",
        recommendations=f"{prefix}.recommendations.v1",
        dead_letters=f"{prefix}.interactions-dead.v1",
        models=f"{prefix}.models.v1",
        items=f"{prefix}.items.v1",
        users=f"{prefix}.users.v1",
    )
    worker = replace(settings.worker, app_id=f"{prefix}-recommender")
    own = replace(settings, topics=topics, worker=worker)
    try:
        count = len(create_topics(own))
        yield DemoKafka(own, f"at {own.kafka.bootstrap_servers}, {count} topics {prefix}.*")
    finally:
        try:
            _remove_topics(own)
        except (PipelineError, KafkaError) as error:
            _log.warning("topics %s* are left behind: %s", prefix, error)


def _remove_topics(settings: Settings) -> None:
    existing = [*existing_topics(settings)]
    group = settings.worker.app_id
    with kafka_admin(settings.kafka) as admin:
        if existing:
            admin.delete_topics(existing)
        if any(one["group_id"] == group for one in admin.list_groups()):
            admin.delete_groups([group])
