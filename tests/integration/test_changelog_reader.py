"""Rows from a real changelog into a real store, against a dict: bulk, standbys, kills, bad logs."""

import asyncio
import random
import subprocess
import sys
import time
import uuid
from collections.abc import AsyncIterator, Coroutine, Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.topics import topic_id
from pipeline.engine import changelog_reader
from pipeline.engine.changelog_reader import ChangelogReader, LogChanged
from pipeline.engine.options import EngineOptions
from pipeline.engine.reading import Reading
from pipeline.settings import KafkaSettings
from state.rocks import RocksOptions, RocksStore
from tests.kafka import admin_client, create_topic, send, send_transactions, wait_until

Row = tuple[int, bytes, bytes | None]

PARTITIONS = 3
SMALL = RocksOptions(write_buffer_bytes=2**20, block_cache_bytes=2**20)  # 128 KB a memtable
DEADLINE_S = 60.0
ROOT = Path(__file__).parents[2]


@pytest.fixture
def topic(kafka: str) -> Iterator[str]:
    """A compacted topic of this test alone."""
    name = f"t{uuid.uuid4().hex[:12]}-changelog"
    create_topic(kafka, name, partitions=PARTITIONS, config={"cleanup.policy": "compact"})
    yield name
    with admin_client(kafka) as admin:
        admin.delete_topics([name])


def later(row: bytes, than: bytes) -> bool:
    """Rows of these tests begin with a number that grows."""
    return int(row.split()[0]) > int(than.split()[0])


@asynccontextmanager
async def reading_from(kafka: str, topic: str, store: RocksStore) -> AsyncIterator[ChangelogReader]:
    """A reader, stopped at the end."""
    options = EngineOptions(
        kafka={"bootstrap_servers": [kafka]},
        app_id="app",
        source="",
        output="",
        dead_letters="",
        changelog=topic,
    )
    with ThreadPoolExecutor(1) as disk:
        reader = ChangelogReader(
            options,
            PARTITIONS,
            store,
            disk,
            lambda rows, than: [later(*pair) for pair in zip(rows, than, strict=True)],
            lambda standby, rows: None,
        )
        try:
            yield reader
        finally:
            await reader.stop()


def run(work: Coroutine[Any, Any, Any]) -> Any:
    return asyncio.run(asyncio.wait_for(work, DEADLINE_S))


async def restored(reader: ChangelogReader, log_id: bytes, partition: int) -> Reading:
    reading = await reader.begin(partition, log_id)
    await reader.catch_up(reading)
    return reading


async def restore_all(kafka: str, topic: str, store: RocksStore) -> list[Reading]:
    """Restore every partition at once, and settle them."""
    log_id = topic_id(KafkaSettings(bootstrap_servers=kafka), topic).encode()
    async with reading_from(kafka, topic, store) as reader:
        readings = await asyncio.gather(
            *[restored(reader, log_id, number) for number in range(PARTITIONS)]
        )
        for reading in readings:
            await reader.settle(reading)
        assert reader.readings() == []
    return list(readings)


def applied(rows: list[Row]) -> dict[int, dict[bytes, bytes]]:
    """The last row of each key, by partition."""
    tables: dict[int, dict[bytes, bytes]] = {number: {} for number in range(PARTITIONS)}
    for partition, key, row in rows:
        if row is None:
            tables[partition].pop(key, None)
        else:
            tables[partition][key] = row
    return tables


def stored(store: RocksStore) -> dict[int, dict[bytes, bytes]]:
    return {number: dict(store.scan(number)) for number in range(PARTITIONS)}


def some_rows(seed: int, n: int, *, users: int = 200, padding: int = 0) -> list[Row]:
    """Rows of users that come again and again, some of them deleted."""
    rng = random.Random(seed)
    rows: list[Row] = []
    for i in range(n):
        user = rng.randrange(users)
        row = b"%d " % (seed * n + i) + b"x" * padding
        rows.append((user % PARTITIONS, b"user-%d" % user, None if rng.random() < 0.1 else row))
    return rows


@pytest.mark.parametrize("bulk_rows", [0, 10**9], ids=["bulk", "logged"])
def test_every_partition_is_restored_as_a_dict_would_be(
    kafka: str,
    topic: str,
    tmp_path: Path,
    monkeypatch: pytest.MonkeyPatch,
    bulk_rows: int,
) -> None:
    """Deleted rows are gone, aborted ones never were, and nobody waits for what ends the log."""
    monkeypatch.setattr(changelog_reader, "BULK_ROWS", bulk_rows)
    rows, more = some_rows(1, 3000), some_rows(2, 200)
    aborted: list[Row] = [(number, b"never", b"0") for number in range(PARTITIONS)] * 50
    send_transactions(
        kafka, topic, [(rows[:2000], True), (aborted, False), (rows[2000:], True), (aborted, False)]
    )
    store = RocksStore(tmp_path / "states", SMALL)

    readings = run(restore_all(kafka, topic, store))

    assert stored(store) == applied(rows)
    assert sum(reading.applied for reading in readings) == len(rows)
    assert not any(reading.broken for reading in readings)

    send_transactions(kafka, topic, [(more, True), (aborted, False)])
    readings = run(restore_all(kafka, topic, store))

    assert stored(store) == applied(rows + more)
    assert sum(reading.applied for reading in readings) == len(more)
    store.close_all()


RESTORER = """
import asyncio, sys
from pathlib import Path
from pipeline.engine import changelog_reader
from state.rocks import RocksStore
from tests.integration.test_changelog_reader import SMALL, restore_all

changelog_reader.PARTITION_FETCH_BYTES = 200_000  # many writes
print("begun", flush=True)
asyncio.run(restore_all(sys.argv[1], sys.argv[2], RocksStore(Path(sys.argv[3]), SMALL)))
print("done", flush=True)
"""


def test_kill_9_in_mid_restore_leaves_rows_that_their_position_names(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    """The next restore goes on from there, with nothing missing and nothing read in vain."""
    rows = some_rows(3, 40_000, users=20_000, padding=600)
    send(kafka, topic, rows)
    by_partition = {p: [row for row in rows if row[0] == p] for p in range(PARTITIONS)}
    moments = random.Random(20260104)
    reached = []
    for _ in range(4):
        command = [sys.executable, "-c", RESTORER, kafka, topic, str(tmp_path / "states")]
        with subprocess.Popen(command, cwd=ROOT, stdout=subprocess.PIPE, text=True) as process:
            assert process.stdout is not None
            assert process.stdout.readline() == "begun\n"
            files = tmp_path / "states" / "partition-0"
            wait_until(lambda where=files: list(where.glob("*.sst")), "the first table file")
            time.sleep(moments.random() / 10)
            process.kill()
        store = RocksStore(tmp_path / "states", SMALL)
        for number, sent in by_partition.items():
            store.open(number)
            position = store.position(number)
            there = sent[: 0 if position is None else position + 1]
            assert dict(store.scan(number)) == applied(there)[number]
            reached.append(len(there) / len(sent))
        store.close_all()
    assert any(0 < share < 1 for share in reached)

    store = RocksStore(tmp_path / "states", SMALL)
    readings = run(restore_all(kafka, topic, store))

    assert stored(store) == applied(rows)
    assert not any(reading.broken for reading in readings)
    assert sum(reading.applied for reading in readings) < len(rows)
    store.close_all()


def made_anew(kafka: str, topic: str, rows: list[Row]) -> None:
    with admin_client(kafka) as admin:
        admin.delete_topics([topic])
        wait_until(lambda: topic not in admin.list_topics(), "the end of the topic")
    create_topic(kafka, topic, partitions=PARTITIONS, config={"cleanup.policy": "compact"})
    send(kafka, topic, rows)


def test_a_changelog_made_anew_is_known_though_it_is_longer(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    """It is read from its beginning, takes nothing back, and says what it lacks, until settled."""
    own: list[Row] = [(0, b"kept", b"5"), (0, b"older-there", b"6"), (0, b"newer-there", b"1")]
    send(kafka, topic, own)
    store = RocksStore(tmp_path / "states", SMALL)
    run(restore_all(kafka, topic, store))
    others: list[Row] = [(0, b"older-there", b"2"), (0, b"newer-there", b"9")]
    made_anew(kafka, topic, others + [(0, b"other", b"7")] * 20)
    log_id = topic_id(KafkaSettings(bootstrap_servers=kafka), topic).encode()

    async def read() -> Reading:
        async with reading_from(kafka, topic, store) as reader:
            return await restored(reader, log_id, 0)

    for _ in range(2):  # a crash before the missing rows are published changes nothing
        reading = run(read())
        assert reading.broken
        assert reading.seen == {b"newer-there", b"other"}
        assert dict(store.scan(0)) == {
            b"kept": b"5",
            b"older-there": b"6",
            b"newer-there": b"9",
            b"other": b"7",
        }
    store.close_all()


def test_a_changelog_that_was_trimmed_is_known_though_it_reaches_the_position(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    """What was cut off may be the only row of a user: the other local rows are told."""
    from kafka.structs import TopicPartition

    rows: list[Row] = [(0, b"cut-off", b"1"), (0, b"left", b"2"), (0, b"left-too", b"3")]
    send(kafka, topic, rows)
    store = RocksStore(tmp_path / "states", SMALL)
    run(restore_all(kafka, topic, store))
    alter(kafka, topic, {"cleanup.policy": "delete"})  # Kafka trims no compacted topic
    with admin_client(kafka) as admin:
        admin.delete_records({TopicPartition(topic, 0): 1})

    readings = run(restore_all(kafka, topic, store))

    assert [reading.broken for reading in readings] == [True, False, False]
    assert readings[0].seen == {b"left", b"left-too"}
    assert dict(store.scan(0)) == {key: row for _, key, row in rows}
    store.close_all()


def alter(kafka: str, topic: str, configs: dict[str, str]) -> None:
    from kafka.admin import ConfigResource, ConfigResourceType

    with admin_client(kafka) as admin:
        admin.alter_configs([ConfigResource(ConfigResourceType.TOPIC, topic, configs)])


def test_a_standby_follows_while_the_log_is_compacted(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    """Whatever the cleaner removes meanwhile, in the end the rows are those of a dict."""
    from tests.integration.test_bad_input_log import cleaner_period

    alter(
        kafka,
        topic,
        {
            "cleanup.policy": "compact",
            "segment.ms": "100",
            "min.cleanable.dirty.ratio": "0.001",
            "min.compaction.lag.ms": "0",
            "delete.retention.ms": "0",
        },
    )
    batches = [some_rows(seed, 300, users=30) for seed in range(10, 30)]
    everything = [row for batch in batches for row in batch]
    standby = RocksStore(tmp_path / "standby", SMALL)
    late = RocksStore(tmp_path / "late", SMALL)
    log_id = topic_id(KafkaSettings(bootstrap_servers=kafka), topic).encode()

    async def follow() -> None:
        async with reading_from(kafka, topic, standby) as reader:
            readings = [
                await reader.begin(number, log_id, follow=True) for number in range(PARTITIONS)
            ]
            for batch in batches:
                await asyncio.to_thread(send_transactions, kafka, topic, [(batch, True)])
                await asyncio.sleep(0.12)
            while stored_in_thread(standby) != applied(everything):
                await asyncio.sleep(0.05)
            assert not any(reading.failed.done() for reading in readings)
            assert max(map(reader.behind, readings)) == 0

    with cleaner_period(kafka, "100"):
        run(follow())
        run(restore_all(kafka, topic, late))

    assert stored(late) == applied(everything)
    standby.close_all()
    late.close_all()


def stored_in_thread(store: RocksStore) -> dict[int, dict[bytes, bytes]]:
    """As `stored`; rows that are written meanwhile may be among them or not."""
    return stored(store)


def test_a_standby_is_told_when_its_changelog_is_made_anew(
    kafka: str, topic: str, tmp_path: Path
) -> None:
    """Kafka's client would begin at the new one's start without a word."""
    send(kafka, topic, [(0, b"user", b"%d" % i) for i in range(50)])
    store = RocksStore(tmp_path / "states", SMALL)

    async def follow() -> None:
        async with reading_from(kafka, topic, store) as reader:
            reading = await reader.begin(0, b"first", follow=True)
            await reader.catch_up(reading)
            await asyncio.to_thread(made_anew, kafka, topic, [(0, b"user", b"1")])
            await reading.failed

    with pytest.raises(LogChanged, match="expected offset 50, got 0"):
        run(follow())
    store.close_all()


def test_a_standby_of_a_changelog_made_anew_settles_once_that_has_all_its_rows(
    kafka: str, topic: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Whoever takes over from it then goes on where it was; before, everything is read again."""
    own: list[Row] = [(0, b"first", b"5"), (0, b"second", b"6"), (0, b"deleted", None)]
    send(kafka, topic, own)
    store = RocksStore(tmp_path / "states", SMALL)
    run(restore_all(kafka, topic, store))
    made_anew(kafka, topic, [(0, b"first", b"5"), (0, b"second", b"3")] * 20)
    log_id = topic_id(KafkaSettings(bootstrap_servers=kafka), topic).encode()

    async def follow() -> tuple[bool, Reading]:
        async with reading_from(kafka, topic, store) as reader:
            standby = await reader.begin(0, log_id, follow=True)
            await reader.catch_up(standby)
            was_broken = standby.broken
            sent = [(0, b"other", b"1"), (0, b"second", b"6"), (0, b"second", b"7")]
            await asyncio.to_thread(send, kafka, topic, sent)
            while reader.behind(standby) or standby.applied < 43:
                await asyncio.sleep(0.05)
            reader.drop(standby)
            return was_broken, await restored(reader, log_id, 0)

    was_broken, takeover = run(follow())

    assert was_broken
    assert "partition 0: the changelog lacks 1 rows of this standby" in caplog.text
    assert not takeover.broken
    assert takeover.applied == 0
    assert dict(store.scan(0)) == {b"first": b"5", b"second": b"7", b"other": b"1"}
    store.close_all()


def test_a_dropped_reading_writes_no_more_and_a_new_one_goes_on(
    kafka: str, topic: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A rebalance in mid-restore: stores may be closed at once, the next one begins where it is."""
    monkeypatch.setattr(changelog_reader, "PARTITION_FETCH_BYTES", 200_000)  # many writes
    rows = some_rows(4, 30_000, users=20_000, padding=300)
    send(kafka, topic, rows)
    store = RocksStore(tmp_path / "states", SMALL)

    async def interrupted() -> None:
        loop = asyncio.get_running_loop()
        async with reading_from(kafka, topic, store) as reader:
            readings = [await reader.begin(number, b"log") for number in range(PARTITIONS)]
            while not all(reading.applied for reading in readings):
                await asyncio.sleep(0.001)
            assert any(reading.left for reading in readings)
            for reading in readings:
                reader.drop(reading)
                await loop.run_in_executor(reader._disk, store.close, reading.partition)
            await asyncio.sleep(0.3)
            assert store.partitions() == set()
            again = [await restored(reader, b"log", number) for number in range(PARTITIONS)]
            assert not any(reading.broken for reading in again)
            assert sum(reading.applied for reading in readings + again) < 2 * len(rows)

    run(interrupted())

    assert stored(store) == applied(rows)
    store.close_all()
