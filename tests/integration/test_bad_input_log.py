"""Logs with gaps, transactions, and logs that were cut: a worker steps over nothing that counts.

One set of topics for all tests of this module, which run in order: a worker on a source with gaps,
then what happens when its log is cut while the worker is frozen, stopped, and altogether.
"""

import asyncio
import dataclasses
import shutil
import signal
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import aiokafka
import pytest
from kafka.admin import AlterConfigOp, ConfigResource, ConfigResourceType
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipeline.cluster.records import end_offsets, read_partitions
from pipeline.cluster.topics import create_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import KafkaSettings, MetricsSettings, Settings
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.bad_records import click, free_port, history_lengths, last_words, run_worker
from tests.kafka import (
    admin_client,
    committed_lag,
    create_topic,
    remove_traces,
    send,
    send_transactions,
    unique_settings,
    wait_until,
)
from tests.releases import random_release
from tests.worker_process import WorkerProcess, running_worker

ITEMS = [f"item-{i}" for i in range(12)]
GAPS, TRANSACTIONS, PLAIN = range(3)
FETCH_BYTES = 20_000  # an aborted transaction is larger than a fetch


@pytest.fixture(scope="module")
def settings(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Topics of which the source was compacted once, and a release."""
    folder: Path = tmp_path_factory.mktemp("log")
    own = dataclasses.replace(
        unique_settings(kafka, folder, partitions=3),
        kafka=KafkaSettings(
            bootstrap_servers=kafka, max_fetch_bytes=FETCH_BYTES, group_instance_id="only"
        ),
        metrics=MetricsSettings(port=free_port()),
    )
    make_gaps(own)
    create_topics(own)
    announce(own, random_release(own.trainer.releases_dir, ITEMS))
    yield own
    remove_traces(own)


def make_gaps(settings: Settings) -> None:
    """Let Kafka compact a partition of the source, then make it an ordinary topic."""
    address, topic = settings.kafka.bootstrap_servers, settings.topics.interactions
    compacting = {
        "cleanup.policy": "compact",
        "segment.ms": "100",
        "min.cleanable.dirty.ratio": "0.001",
        "min.compaction.lag.ms": "0",
    }
    create_topic(address, topic, partitions=3, config=compacting)
    for keys in (range(50), range(0, 50, 2), [99]):  # what has the same key before is removed
        send(
            address,
            topic,
            [(GAPS, b"%d" % i, click(f"user-{i % 5}", ITEMS[i % 12])) for i in keys],
        )
        time.sleep(0.15)  # a segment that is written to is never compacted
    with cleaner_period(address, "200"):
        wait_until(lambda: len(list(read_partitions(settings.kafka, topic))) == 51, "compaction")
    with admin_client(address) as admin:
        plain = {"cleanup.policy": "delete", "retention.ms": "-1"}
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, plain)])


@contextmanager
def cleaner_period(address: str, period_ms: str) -> Iterator[None]:
    """Have the broker look more often for what to compact; every 15 s is its default."""
    name = "log.cleaner.backoff.ms"
    with admin_client(address) as admin:
        (broker,) = admin.describe_cluster()["brokers"]
        node = str(broker["broker_id"])
        for change in ({name: period_ms}, {name: (AlterConfigOp.DELETE, None)}):
            admin.alter_configs([ConfigResource(ConfigResourceType.BROKER, node, change)])
            if change == {name: period_ms}:
                yield


@pytest.fixture(scope="module")
def worker(settings: Settings) -> Iterator[WorkerProcess]:
    """A worker on it. Restarts move no partition: what it is replaced by begins at once."""
    send_transactions(
        settings.kafka.bootstrap_servers,
        settings.topics.interactions,
        [
            (clicks("sure", 5), True),
            (clicks("sure", 300) + clicks("never", 5), False),
            (clicks("sure", 3), True),
            (clicks("sure", 7), False),
        ],
    )
    with running_worker(settings) as running:
        running.wait_until_ready()
        yield running


def clicks(user: str, n: int, partition: int = TRANSACTIONS) -> list[tuple[int, bytes, bytes]]:
    return [(partition, user.encode(), click(user, ITEMS[i % 12])) for i in range(n)]


def committed(settings: Settings) -> dict[int, int]:
    """What the worker's group has acknowledged of the source, by partition."""
    group = settings.worker.app_id
    with admin_client(settings.kafka.bootstrap_servers) as admin:
        offsets = admin.list_group_offsets([group])[group]
    return {
        tp.partition: offset.offset
        for tp, offset in offsets.items()
        if tp.topic == settings.topics.interactions and offset.offset  # 0: where reading began
    }


def test_gaps_left_by_compaction_are_no_holes(worker: WorkerProcess) -> None:
    """Every record that is left is applied, every offset acknowledged."""
    expected = dict.fromkeys([f"user-{i}" for i in range(5)], 10) | {"user-4": 11}

    wait_until(lambda: expected.items() <= history_lengths(worker.settings).items(), f"{expected}")
    assert worker.process.poll() is None


def test_aborted_records_never_happened(worker: WorkerProcess) -> None:
    """Also where one fetch brings nothing else; markers and all are acknowledged to the end."""
    settings = worker.settings

    wait_until(lambda: history_lengths(settings).get("sure") == 8, "8 committed events")
    ends = end_offsets(settings.kafka, settings.topics.interactions)
    wait_until(lambda: committed(settings).items() >= {GAPS: 76, TRANSACTIONS: 324}.items(), "ends")
    assert (ends[GAPS], ends[TRANSACTIONS]) == (76, 324)
    assert "never" not in history_lengths(settings)
    for partition in (GAPS, TRANSACTIONS):
        series = f'lrurec_consumer_lag_events{{partition="{partition}"}}'
        wait_until(lambda name=series: worker.metric(name) == 0, "no lag")


def test_an_open_transaction_is_waited_for(worker: WorkerProcess) -> None:
    """What stands behind it comes after it, in the order of the log."""
    settings = worker.settings
    address, topic = settings.kafka.bootstrap_servers, settings.topics.interactions

    async def run() -> None:
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address, transactional_id=topic)
        await producer.start()
        try:
            await producer.begin_transaction()
            await producer.send_and_wait(topic, click("open"), partition=TRANSACTIONS)
            await asyncio.to_thread(send, address, topic, clicks("behind", 2))
            await asyncio.sleep(0.5)
            known = await asyncio.to_thread(history_lengths, settings)
            assert not {"open", "behind"} & known.keys()
            await producer.commit_transaction()
        finally:
            await producer.stop()

    asyncio.run(run())

    wait_until(
        lambda: {"open": 1, "behind": 2}.items() <= history_lengths(settings).items(), "both"
    )


def test_every_offset_is_accounted_for(worker: WorkerProcess) -> None:
    """`lrurec verify` reads the same log and finds every state and answer as it should be."""
    settings = worker.settings
    ends = end_offsets(settings.kafka, settings.topics.interactions)
    written = {partition: end for partition, end in ends.items() if end}
    wait_until(lambda: committed(settings) == written, f"{written} acknowledged")

    report = verify(settings)

    assert report.holds, report.findings
    assert report.offsets.without_record == 25 + 305 + 7 + 5  # compacted, aborted, markers
    assert report.offsets.pending == 0


def test_records_deleted_before_they_were_read_end_the_worker(worker: WorkerProcess) -> None:
    """In one line that names the offsets; nothing behind them is applied."""
    settings = worker.settings
    address, topic = settings.kafka.bootstrap_servers, settings.topics.interactions
    send(address, topic, clicks("kept", 4, PLAIN))
    wait_until(lambda: history_lengths(settings).get("kept") == 4, "4 events")
    wait_until(lambda: committed(settings).get(PLAIN) == 4, "4 acknowledged")

    worker.process.send_signal(signal.SIGSTOP)
    time.sleep(0.2)  # a fetch that is under way comes back empty
    send(address, topic, clicks("lost", 3, PLAIN))
    with admin_client(address) as admin:
        admin.delete_records({TopicPartition(topic, PLAIN): 7})
    send(address, topic, clicks("kept", 1, PLAIN))
    worker.process.send_signal(signal.SIGCONT)

    assert worker.wait() == ExitCode.HOLE
    said = f"{topic} partition {PLAIN}: offset 4 is the next to read, but the topic now starts at 7"
    assert said in last_words(worker)
    assert history_lengths(settings)["kept"] == 4


def test_a_worker_does_not_start_behind_deleted_records(worker: WorkerProcess) -> None:
    """It says the same until someone accepts the loss; then it goes on."""
    settings = worker.settings
    worker.log_file.unlink()

    with running_worker(settings) as again:
        assert again.wait() == ExitCode.HOLE
    command = (
        f"kafka-consumer-groups.sh --bootstrap-server HOST:PORT --group {settings.worker.app_id} "
        f"--topic {settings.topics.interactions}:{PLAIN} --reset-offsets --to-earliest --execute;"
    )
    assert command in last_words(again)


def test_a_source_made_anew_ends_the_worker(worker: WorkerProcess) -> None:
    """Its offsets begin again: by them every event would seem to be applied already."""
    settings = worker.settings
    address, topic = settings.kafka.bootstrap_servers, settings.topics.interactions
    with admin_client(address) as admin:
        admin.delete_topics([topic])
    create_topic(address, topic, partitions=3)
    send(address, topic, [(GAPS, b"k", click("user-1")), (GAPS, b"k", click("user-2"))])
    code, (line,) = run_worker(settings)
    assert code == 1
    assert f"{settings.worker.data_dir}: its states are of topic {topic}" in line
    assert "begin anew with another --worker.app-id" in line

    shutil.rmtree(settings.worker.data_dir)  # the states are in the changelog still
    worker.log_file.unlink()
    with running_worker(settings) as again:
        assert again.wait() == ExitCode.HOLE
    assert "but the topic ends at 2: it was made anew or cut" in last_words(again)


def test_a_group_that_kafka_forgot_hides_no_hole(settings: Settings) -> None:
    """A week after the last worker left nobody knows how far it had read; a new app does begin."""
    own = dataclasses.replace(
        settings,
        kafka=dataclasses.replace(settings.kafka, group_instance_id=None),  # leaves at its stop
        worker=dataclasses.replace(
            settings.worker,
            app_id=settings.worker.app_id + "-forgotten",
            data_dir=settings.worker.data_dir.parent / "forgotten" / "worker",
        ),
    )
    address, topic = own.kafka.bootstrap_servers, own.topics.interactions
    create_topics(own)
    send(address, topic, clicks("early", 1))
    with admin_client(address) as admin:
        admin.delete_records({TopicPartition(topic, TRANSACTIONS): 1})
    with running_worker(own) as worker:
        # Before anything is read: a kill after the first rows must not look like a forgotten group.
        wait_until(lambda: committed(own).get(TRANSACTIONS) == 1, "where reading begins")
        send(address, topic, clicks("late", 1))
        wait_until(lambda: history_lengths(own).get("late") == 1, "an answer")
        wait_until(lambda: committed_lag(own) == 0, "all acknowledged")
        assert worker.stop() == 0
    with admin_client(address) as admin:
        admin.delete_groups([own.worker.app_id])  # as its end by age does
    assert committed(own) == {}

    worker.log_file.unlink()
    with running_worker(own) as again:
        assert again.wait() == ExitCode.HOLE
    said = f"{topic} partition {TRANSACTIONS}: it was read before, but Kafka has forgotten how far"
    assert said in last_words(again)


def test_acknowledged_offsets_beyond_the_log_end_the_worker(settings: Settings) -> None:
    """A log that lost its end is not read from its start, as Kafka's clients would."""
    own = dataclasses.replace(
        settings,
        worker=dataclasses.replace(
            settings.worker,
            app_id=settings.worker.app_id + "-beyond",
            data_dir=settings.worker.data_dir.parent / "beyond" / "worker",
        ),
    )
    create_topics(own)
    topic = own.topics.interactions
    with admin_client(own.kafka.bootstrap_servers) as admin:
        offset = OffsetAndMetadata(500, "", -1)
        admin.alter_group_offsets(own.worker.app_id, {TopicPartition(topic, PLAIN): offset})

    with running_worker(own) as worker:
        assert worker.wait() == ExitCode.HOLE
    assert f"{topic} partition {PLAIN}: offset 500 is the next to read" in last_words(worker)
