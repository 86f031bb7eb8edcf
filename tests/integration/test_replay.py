"""A file into the topic: everything once, in order for every user, at the speed asked for."""

import json
import random
import subprocess
import sys
import time
from collections import defaultdict
from dataclasses import replace
from pathlib import Path

import pytest
from kafka.partitioner.default import murmur2

from pipeline.cluster.records import Record, end_offsets, read_partitions
from pipeline.cluster.topics import create_topics
from pipeline.errors import BrokerUnavailable, TopicMismatch
from pipeline.events import EventDecoder
from pipeline.files.interactions import read_interactions
from pipeline.replay import replay
from pipeline.settings import Settings, settings_flags

N_EVENTS = 3000


@pytest.fixture
def data_file(tmp_path: Path) -> Path:
    """Events of 60 users, some with names that need care in JSON, at times that never repeat."""
    rng = random.Random(7)
    users = [f"u{number}" for number in range(57)] + ['"quoted"', "zoë", "back\\slash"]
    rows = [
        [rng.choice(users), f"item {rng.randrange(40)}", str(1_600_000_000 + second)]
        for second in range(N_EVENTS)
    ]
    quoted = [",".join('"' + cell.replace('"', '""') + '"' for cell in row) for row in rows]
    path = tmp_path / "events.csv"
    path.write_text("user,item,timestamp\n" + "\n".join(quoted) + "\n")
    return path


def read_back(settings: Settings) -> list[Record]:
    """Everything in the interactions topic, ordered within each partition."""
    return list(read_partitions(settings.kafka, settings.topics.interactions))


def test_every_event_arrives_once_in_order_on_its_users_partition(
    settings: Settings, data_file: Path
) -> None:
    """A user's events lie on the partition of murmur2, oldest first, as a worker decodes them."""
    create_topics(settings)
    interactions = read_interactions(data_file)
    began_ms = time.time() * 1000

    report = replay(settings, interactions)

    decoder = EventDecoder(settings.fields)
    histories: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for record in read_back(settings):
        event = decoder.decode(record.value, record.timestamp)
        assert event is not None
        assert record.key == event.user_key
        assert record.partition == (murmur2(record.key) & 0x7FFFFFFF) % 4
        assert began_ms - 1 <= record.timestamp <= time.time() * 1000
        histories[event.user_key.decode()].append((event.item_id, event.timestamp_ms))
    expected: dict[str, list[tuple[str, int]]] = defaultdict(list)
    for row in interactions.rows():
        expected[row.user].append((row.item, row.timestamp_ms))
    assert histories == expected
    assert report.records == N_EVENTS
    ends = end_offsets(settings.kafka, settings.topics.interactions)
    assert report.last_offsets == {partition: end - 1 for partition, end in ends.items()}


@pytest.mark.parametrize("compression", ["lz4", "zstd"])
def test_events_may_be_compressed(settings: Settings, data_file: Path, compression: str) -> None:
    """The topics' compression is used for sending, and any reader sees the same."""
    compressed = replace(settings, topics=replace(settings.topics, compression=compression))
    create_topics(compressed)

    replay(compressed, read_interactions(data_file))

    assert len(read_back(settings)) == N_EVENTS


def test_progress_ends_at_the_number_of_records(settings: Settings, data_file: Path) -> None:
    """Progress counts what Kafka has confirmed; it never falls."""
    create_topics(settings)
    seen: list[int] = []

    replay(settings, read_interactions(data_file), on_progress=seen.append)

    assert seen == sorted(seen)
    assert seen[-1] == N_EVENTS


def test_a_rate_is_kept(settings: Settings, data_file: Path) -> None:
    """600 events at 400 a second take a second and a half; they come spread, not at the end."""
    create_topics(settings)

    report = replay(settings, read_interactions(data_file), stop=600, rate=400)

    assert report.records == 600
    assert 1.4 <= report.seconds < 4
    sent_ms = sorted(record.timestamp for record in read_back(settings))
    assert len(sent_ms) == 600
    assert sent_ms[300] - sent_ms[0] > 600
    assert sent_ms[-1] - sent_ms[0] > 1300


def test_fractions_meet_without_gap_or_overlap(
    settings: Settings, data_file: Path, tmp_path: Path
) -> None:
    """The command sends the first part, then the rest: together each event once."""
    create_topics(settings)
    topic = settings.topics.interactions
    reports = []
    for fractions in (["--to-fraction", "0.31"], ["--from-fraction", "0.31"]):
        report = tmp_path / "report.json"
        command = [sys.executable, "-m", "pipeline", "replay", str(data_file), *fractions]
        command += ["--json", str(report), *settings_flags(settings)]
        done = subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)
        assert f"events into {topic}" in done.stdout
        reports.append(json.loads(report.read_text()))

    assert [report["records"] for report in reports] == [930, N_EVENTS - 930]
    assert reports[0]["rate"] > 0
    ends = end_offsets(settings.kafka, topic)
    assert reports[1]["last_offsets"] == {str(p): end - 1 for p, end in ends.items()}
    decoder = EventDecoder(settings.fields)
    times = [decoder.decode(r.value, r.timestamp).timestamp_ms for r in read_back(settings)]  # type: ignore[union-attr]
    assert sorted(times) == [row.timestamp_ms for row in read_interactions(data_file).rows()]


@pytest.mark.parametrize(
    "arguments",
    [["--from-fraction", "0.5", "--to-fraction", "0.4"], ["--to-fraction", "1.5"]],
    ids=["from after to", "beyond the end"],
)
def test_impossible_wishes_are_refused_in_one_line(arguments: list[str], data_file: Path) -> None:
    """Exit code 2 and one line, before anything is read or sent."""
    command = [sys.executable, "-m", "pipeline", "replay", str(data_file), *arguments]

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=60)

    assert done.returncode == 2
    assert done.stderr.startswith("lrurec replay: ")
    assert len(done.stderr.splitlines()) == 1


def test_without_the_topic_nothing_is_sent_or_made(settings: Settings, data_file: Path) -> None:
    """A misspelt topic is an error that names it."""
    with pytest.raises(TopicMismatch, match=settings.topics.interactions):
        replay(settings, read_interactions(data_file))


def test_without_kafka_replay_ends_after_its_deadline(settings: Settings, data_file: Path) -> None:
    """One line that names the address."""
    nowhere = replace(settings.kafka, bootstrap_servers="127.0.0.1:9", connect_timeout_s=0.2)

    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9"):
        replay(replace(settings, kafka=nowhere), read_interactions(data_file))
