"""Recommendations in the transaction of their states: whoever reads committed gets each once."""

import dataclasses
import random
import signal
from collections import Counter

import msgspec
from kafka.admin import AlterConfigOp, ConfigResource, ConfigResourceType

from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import changelog_name, create_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import MetricsSettings, Settings
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.kafka import admin_client, committed_lag, free_port, send, wait_until
from tests.releases import random_release
from tests.worker_process import running_worker

ITEMS = [f"item-{i}" for i in range(40)]
STAGES = ("computed", "sent", "rows-sent", "committed", "written", "acknowledged")
EVENTS = 80


def prepare(settings: Settings) -> Settings:
    """Micro-batches of one record, so that every event has a recommendation of its own."""
    own = dataclasses.replace(
        settings,
        metrics=MetricsSettings(port=free_port()),
        worker=dataclasses.replace(settings.worker, batch_events=1, checkpoint_interval_s=0.05),
        kafka=dataclasses.replace(settings.kafka, session_timeout_s=4.0),
        recommend=dataclasses.replace(settings.recommend, transactional=True),
    )
    create_topics(own)
    announce(own, random_release(own.trainer.releases_dir, ITEMS))
    return own


def produce(settings: Settings, rng: random.Random, first: int) -> set[tuple[str, int]]:
    """Send EVENTS events; (user, timestamp) of each."""
    records, sent = [], set()
    for i in range(first, first + EVENTS):
        user, at = rng.randrange(9), 1_700_000_000_000 + i
        event = {"user_id": f"user-{user}", "item_id": rng.choice(ITEMS), "timestamp_ms": at}
        records.append((user % 4, b"user-%d" % user, msgspec.json.encode(event)))
        sent.add((f"user-{user}", at))
    send(settings.kafka.bootstrap_servers, settings.topics.interactions, records)
    return sent


def answered(settings: Settings) -> Counter[tuple[str, int]]:
    """How often each (user, timestamp of the event) was answered, for who reads committed."""
    answers = (
        msgspec.json.decode(record.value)
        for record in read_partitions(settings.kafka, settings.topics.recommendations)
        if record.value is not None
    )
    return Counter((answer["user_id"], answer["event"]["timestamp_ms"]) for answer in answers)


def test_each_event_is_answered_exactly_once_through_kills_at_every_stage(
    settings: Settings,
) -> None:
    """What a dying worker had sent and not committed is never seen, and all else exactly once."""
    stream, rng = prepare(settings), random.Random(1)
    sent: set[tuple[str, int]] = set()
    for stage in rng.sample(STAGES, len(STAGES)):
        sent |= produce(stream, rng, len(sent))
        with running_worker(stream, die_at=f"{stage}:{rng.randrange(2, 9)}") as worker:
            assert worker.wait() == -signal.SIGKILL, worker.log()[-3000:]
        assert set(answered(stream).values()) <= {1}
    with running_worker(stream) as worker:
        wait_until(lambda: committed_lag(stream) == 0, "everything committed", deadline_s=60)
        assert worker.stop() == 0

    assert answered(stream) == Counter(dict.fromkeys(sent, 1))
    assert verify(stream).holds


def test_answers_that_the_broker_refuses_take_their_states_with_them(settings: Settings) -> None:
    """All of a transaction or nothing: a state without its answer would never be answered."""
    stream = prepare(settings)
    resource = ConfigResource(
        ConfigResourceType.TOPIC,
        stream.topics.recommendations,
        configs={"max.message.bytes": (AlterConfigOp.SET, "100")},
    )

    with running_worker(stream) as worker:
        worker.wait_until_ready()  # a start would have refused such a topic
        with admin_client(stream.kafka.bootstrap_servers) as admin:
            admin.alter_configs([resource])
        produce(stream, random.Random(3), 0)
        assert worker.wait() == ExitCode.CHECKPOINT
        assert "max.message.bytes" in worker.log()

    assert committed_lag(stream) == EVENTS
    assert list(read_partitions(stream.kafka, changelog_name(stream.worker.app_id))) == []
