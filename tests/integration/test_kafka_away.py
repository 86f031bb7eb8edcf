"""Kafka goes away while it is read from or written to: for a moment, or for good."""

import os
import signal
import threading
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path

import numpy as np
import psutil
import pytest

from pipeline import replay
from pipeline.cluster import records as kafka_records
from pipeline.cluster.broker import find, free_port, start, stop
from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import create_topics
from pipeline.errors import BrokerUnavailable
from pipeline.events import EventDecoder
from pipeline.files.rows import Interactions
from pipeline.settings import BrokerSettings, KafkaSettings, Settings
from tests.kafka import send

N_EVENTS = 20_000


@pytest.fixture
def settings(tmp_path: Path) -> Iterator[Settings]:
    """A broker of its own that may be killed, with all topics."""
    broker = BrokerSettings(data_dir=tmp_path / "broker", port=free_port(), heap_mib=256)
    own = Settings(broker=broker, kafka=KafkaSettings(bootstrap_servers=start(broker).address))
    create_topics(own)
    yield own
    stop(broker)


@pytest.fixture
def interactions() -> Interactions:
    """Users take turns; the timestamp numbers the events."""
    numbers = np.arange(N_EVENTS)
    return Interactions(
        user_ids=[f"u{number}" for number in range(50)],
        item_ids=["i"],
        event_types=[],
        users=(numbers % 50).astype(np.int32),
        items=np.zeros(N_EVENTS, dtype=np.int32),
        types=None,
        timestamps_ms=1_700_000_000_000 + numbers,
    )


def kill(settings: Settings) -> None:
    """End Kafka the hard way; its port is free afterwards."""
    info = find(settings.broker)
    assert info is not None
    process = psutil.Process(info.pid)
    os.kill(info.pid, signal.SIGKILL)
    process.wait(10)


def test_what_is_sent_across_a_kill_and_return_arrives_once_and_in_order(
    settings: Settings, interactions: Interactions
) -> None:
    """Nothing is lost, nothing comes twice, and a reader that was under way reads on to the end."""

    def kill_and_return() -> None:
        kill(settings)
        start(settings.broker)

    bounce = threading.Timer(0.7, kill_and_return)
    bounce.start()
    report = replay.replay(settings, interactions, rate=N_EVENTS / 2)
    bounce.join()

    reading = read_partitions(settings.kafka, settings.topics.interactions)
    records = [next(reading)]
    kill(settings)
    start(settings.broker)
    records += reading

    assert report.records == len(records) == N_EVENTS
    decoder = EventDecoder(settings.fields)
    times: dict[bytes | None, list[int]] = {}
    for record in records:
        event = decoder.decode(record.value, record.timestamp)
        assert event is not None
        times.setdefault(record.key, []).append(event.timestamp_ms)
    assert all(of_user == sorted(of_user) for of_user in times.values())
    everything = sorted(time_ms for of_user in times.values() for time_ms in of_user)
    assert everything == interactions.timestamps_ms.tolist()


def test_for_good_ends_in_one_line_after_the_deadline(
    settings: Settings, interactions: Interactions, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A read and a replay under way give up and say how far they came; neither hangs."""
    monkeypatch.setattr(kafka_records, "STALL_DEADLINE_S", 1.5)
    monkeypatch.setattr(replay, "DELIVERY_DEADLINE_S", 1.5)
    items = settings.topics.items
    # Several fetches long: what has come already would be read to its end without Kafka.
    send(settings.kafka.bootstrap_servers, items, [(0, b"k", bytes(100_000))] * 100)
    reading = read_partitions(settings.kafka, items)
    next(reading)
    killer = threading.Timer(0.7, kill, [settings])
    killer.start()

    began = time.monotonic()
    with pytest.raises(BrokerUnavailable, match=r"no confirmation .* \d+ events are del") as sent:
        replay.replay(settings, interactions, rate=N_EVENTS / 10)
    with pytest.raises(BrokerUnavailable, match=r"nothing came .*\[\d\] at \d+ of \d+") as read:
        list(reading)
    nowhere = replace(settings.kafka, connect_timeout_s=0.2)
    with pytest.raises(BrokerUnavailable, match="no Kafka within"):
        list(read_partitions(nowhere, items))

    assert time.monotonic() - began < 15
    assert "\n" not in f"{sent.value}{read.value}"
