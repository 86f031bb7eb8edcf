"""`lrurec verify` on a real Kafka: what topics hold is judged, and a real worker's work holds."""

import asyncio
import dataclasses
import json
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

import aiokafka
import msgspec
import numpy as np
import pytest
from kafka import TopicPartition
from kafka.structs import OffsetAndMetadata

from pipeline.__main__ import main
from pipeline.cluster.topics import create_topics
from pipeline.settings import (
    MetricsSettings,
    RecommendSettings,
    Settings,
    settings_flags,
)
from pipeline.worker.releases import announce
from tests.kafka import (
    admin_client,
    committed_lag,
    free_port,
    send,
    send_transactions,
    wait_until,
)
from tests.releases import random_release
from tests.verify_world import PARTITIONS, RING, K, ListedRecord, StreamWorld, small_release
from tests.worker_process import WorkerProcess, running_worker

MORE_ITEMS = [f"item-{i}" for i in range(30)]


def judge(settings: Settings, tmp_path: Path) -> tuple[int, dict[str, Any]]:
    """Exit code of the command, and what it wrote."""
    file = tmp_path / "verify.json"
    code = main(["verify", "--json", str(file), *settings_flags(settings)])
    return code, json.loads(file.read_text())


# --- topics made by hand


@pytest.fixture
def world(settings: Settings, tmp_path: Path) -> StreamWorld:
    """A stream's topics, sent record by record to Kafka: its events, rows, answers and commits.

    Behind the events of partition 1 stand a committed transaction of one event and an aborted one.
    """
    topics = dataclasses.replace(settings.topics, partitions=len(PARTITIONS))
    recommend = RecommendSettings(top_k=K, ring=RING)
    own = dataclasses.replace(settings, topics=topics, recommend=recommend)
    create_topics(own)
    made = StreamWorld(tmp_path, own, [small_release(tmp_path / "releases")])
    made.click_all("long", "0123456730")
    made.click("long", "item-3", event_id="once")
    made.click("long", "item-3", event_id="once")
    made.junk(b"{")
    made.junk(None)
    made.click_all("short", "21", partition=1)
    name = own.topics.interactions
    made.click("short", "item-5", partition=1)
    for _ in range(3):  # the marker of the commit, an aborted event, its marker
        made.topics.append(name, 1, None, None)
        made.topics.remove(name, 1, -1)
    made.run()
    address = own.kafka.bootstrap_servers
    for (topic, partition), log in made.topics.records.items():
        records = [r for r in log if r is not None]
        if topic == own.topics.dead_letters:
            send_whole(address, records, with_times=False)  # which retention would remove
        elif topic == made.changelog:
            rows = [(partition, r.key, r.value) for r in records]
            send_transactions(address, topic, [(rows, True), (rows[:1], False)])
        elif (topic, partition) == (name, 1):
            send(address, topic, [(1, r.key, r.value) for r in records[:2]])
            last = [(1, records[2].key, records[2].value)]
            send_transactions(address, topic, [(last, True), (last, False)])
        elif topic == name:
            send_whole(address, records, with_times=True)  # which the letters tell
        else:
            send(address, topic, [(partition, r.key, r.value) for r in records])
    commit(made)
    return made


def send_whole(address: str, records: Iterable[ListedRecord], *, with_times: bool) -> None:
    """Send records with their headers, and with their timestamps or those of now."""

    async def run() -> None:
        producer = aiokafka.AIOKafkaProducer(bootstrap_servers=address)
        await producer.start()
        try:
            for record in records:
                await producer.send_and_wait(
                    record.topic,
                    record.value,
                    key=record.key,
                    partition=record.partition,
                    timestamp_ms=record.timestamp if with_times else None,
                    headers=list(record.headers),
                )
        finally:
            await producer.stop()

    asyncio.run(run())


def commit(world: StreamWorld) -> None:
    """Commit what the world has committed as the worker's group."""
    offsets = {
        TopicPartition(world.names.interactions, partition): OffsetAndMetadata(offset, "", -1)
        for partition, offset in world.topics.committed.items()
    }
    with admin_client(world.settings.kafka.bootstrap_servers) as admin:
        admin.alter_group_offsets(world.settings.worker.app_id, offsets)


def test_topics_of_a_true_stream_hold(world: StreamWorld, tmp_path: Path) -> None:
    """Exit code 0, and every offset is accounted for: events, repeats, junk and transactions."""
    code, report = judge(world.settings, tmp_path)

    assert report["findings"] == []
    assert (code, report["holds"]) == (0, True)
    assert report["offsets"] == {
        "applied": 14,
        "duplicate": 1,
        "skipped": 0,
        "forgotten": 0,
        "dead": 2,
        "without_record": 3,
        "missing": 0,
        "pending": 0,
    }
    assert (report["users"], report["rows"], report["states"]) == (2, 2, 2)
    assert report["max_abs_diff"] < 1e-6
    assert report["outputs"]["checked"] == report["outputs"]["lists"] > 0


def test_a_false_row_is_found(
    world: StreamWorld, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Exit code 1, with place, what was expected and what there is, and no user's id."""
    world.forge_row("long", hidden=world.hidden("long") + np.complex64(2e-5))
    row = world.row("long")
    topic, address = world.changelog, world.settings.kafka.bootstrap_servers
    send_transactions(address, topic, [([(0, b"long", row)], True), ([(0, b"long", b"")], False)])

    code, report = judge(world.settings, tmp_path)

    assert (code, report["holds"], report["states_different"]) == (1, False, 1)
    assert report["max_abs_diff"] == pytest.approx(2e-5, rel=0.1)
    assert report["max_abs_diff_at"] == [0, 10]
    (finding,) = report["findings"]
    assert (finding["kind"], finding["partition"], finding["offset"]) == ("state", 0, 10)
    out = capsys.readouterr().out
    assert "Step = scan" in out
    assert "BROKEN" in out
    assert "partition 0 offset 10: hidden state by release 1" in out
    assert "long" not in out


def test_an_event_without_an_answer_is_found(world: StreamWorld, tmp_path: Path) -> None:
    """A committed event that no state holds is missing; one behind the commit is pending."""
    topic, address = world.names.interactions, world.settings.kafka.bootstrap_servers
    world.click_all("long", "12")
    lost, pending = world.topics.records[topic, 0][-2:]
    assert lost is not None
    assert pending is not None
    send(address, topic, [(0, r.key, r.value) for r in (lost, pending)])
    world.topics.committed[0] = lost.offset + 1
    commit(world)

    code, report = judge(world.settings, tmp_path)

    assert code == 1
    assert report["offsets"]["missing"] == report["outputs"]["missing"] == 1
    assert report["offsets"]["pending"] == 1


def test_events_that_retention_removed_are_not_called_wrong(
    world: StreamWorld, tmp_path: Path
) -> None:
    """A state whose first events are gone is unverifiable, and everything else holds."""
    partition = TopicPartition(world.names.interactions, 0)
    with admin_client(world.settings.kafka.bootstrap_servers) as admin:
        admin.delete_records({partition: 3})

    code, report = judge(world.settings, tmp_path)

    assert report["findings"] == []
    assert code == 0
    assert (report["states"], report["states_unverifiable"]) == (1, 1)
    assert report["offsets"]["applied"] == 11


def test_a_group_that_never_committed_leaves_everything_pending(
    settings: Settings, tmp_path: Path
) -> None:
    """Before the first worker there is nothing to judge."""
    create_topics(settings)
    send(settings.kafka.bootstrap_servers, settings.topics.interactions, [(0, b"u", b"{")])

    code, report = judge(settings, tmp_path)

    assert code == 0
    assert report["offsets"]["pending"] == 1
    assert report["users"] == report["outputs"]["checked"] == 0


def test_missing_topics_end_in_one_line(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Without topics there is nothing to verify, and the line says what to do."""
    assert main(["verify", *settings_flags(settings)]) == 1

    assert "lrurec topics create" in capsys.readouterr().err


# --- a real worker


@pytest.fixture
def worker(settings: Settings) -> Iterator[WorkerProcess]:
    """A worker with an announced release, whose partitions flow."""
    own = dataclasses.replace(settings, metrics=MetricsSettings(port=free_port()))
    create_topics(own)
    announce(own, random_release(own.trainer.releases_dir, MORE_ITEMS))
    with running_worker(own) as running:
        running.wait_until_ready()
        yield running


def produce(settings: Settings, seed: int, n: int) -> None:
    """Send n records of 20 users: events, some with ids that repeat, unknown items and junk."""
    random = np.random.default_rng(seed)
    records = []
    for i in range(n):
        user = int(random.integers(20))
        event = {"user_id": f"user-{user}", "item_id": f"item-{random.integers(32)}"}
        event["timestamp_ms"] = 1_700_000_000_000 + i
        if random.random() < 0.3:
            event["event_id"] = f"{random.integers(50)}"
        value = msgspec.json.encode(event) if random.random() < 0.98 else b"junk"
        records.append((user % settings.topics.partitions, b"user-%d" % user, value))
    send(settings.kafka.bootstrap_servers, settings.topics.interactions, records)


def test_a_real_worker_keeps_its_promises(worker: WorkerProcess, tmp_path: Path) -> None:
    """While it runs and swaps releases, and after its end; with another shape and a longer ring."""
    settings = worker.settings
    produce(settings, 1, 600)
    wait_until(lambda: committed_lag(settings) == 0, "600 records answered")
    folder = settings.trainer.releases_dir
    announce(
        settings,
        random_release(folder, MORE_ITEMS[:25], version=2, hidden_size=6, max_length=13),
    )
    produce(settings, 2, 300)

    code, report = judge(settings, tmp_path)  # beside the worker
    assert report["findings"] == []
    assert code == 0
    wait_until(lambda: worker.metric("lrurec_model_version") == 2, "a release")
    produce(settings, 3, 300)
    wait_until(lambda: committed_lag(settings) == 0, "all records answered")
    assert worker.metric("lrurec_model_version") == 2
    assert worker.stop() == 0

    code, report = judge(settings, tmp_path)

    assert report["findings"] == []
    assert code == 0
    offsets = report["offsets"]
    assert sum(offsets.values()) == 1200
    assert offsets["duplicate"] > 0
    assert offsets["dead"] > 0
    assert (report["users"], report["rows"], report["states"]) == (20, 20, 20)
    assert 0 < report["outputs"]["lists"] <= report["outputs"]["checked"]
