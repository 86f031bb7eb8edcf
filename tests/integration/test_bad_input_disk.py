"""Damage on disk: rows, databases and releases, and announcements that are none.

The tests of this module run in order, on one data folder and one changelog.
"""

import dataclasses
import shutil
from collections.abc import Iterator
from pathlib import Path

import pytest

from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import changelog_name, create_topics, existing_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import KafkaSettings, MetricsSettings, Settings
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from state.rocks import RocksStore
from tests.bad_records import click, free_port, history_lengths, last_words, newest
from tests.kafka import admin_client, remove_traces, send, unique_settings, wait_until
from tests.releases import random_release
from tests.worker_process import running_worker

ITEMS = [f"item-{i}" for i in range(12)]
USERS = range(20)
ROW_DAMAGED, WAL_CUT, FILES_GONE, FORMAT_UNKNOWN = range(4)  # partitions
DEEP = b'{"more":' + b"[" * 5000 + b"]" * 5000 + b"}"
NO_ANNOUNCEMENTS = [
    DEEP,
    b"no JSON",
    b"\xff\xfe",
    b'{"version":7}',
    b'{"version":"\xff","location":"","manifest_sha256":"","created":""}',
    b'{"version":7,"location":"\\u0000","manifest_sha256":"","created":""}',
    b'{"version":7,"location":"/nowhere","manifest_sha256":"","created":""}',
    None,
]
NO_ITEMS = [DEEP, b"no JSON", b"\xff", b'{"available":"\xff"}', b"[]", b'{"available":3}']


@pytest.fixture(scope="module")
def settings(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[Settings]:
    """Topics, and three releases of which the last announced one is damaged."""
    folder: Path = tmp_path_factory.mktemp("disk")
    own = dataclasses.replace(
        unique_settings(kafka, folder),
        # Restarts move no partition: what takes the place of a dead worker begins at once.
        kafka=KafkaSettings(bootstrap_servers=kafka, group_instance_id="only"),
        metrics=MetricsSettings(port=free_port()),
    )
    create_topics(own)
    releases = own.trainer.releases_dir
    announce(own, random_release(releases, ITEMS))
    damaged = random_release(releases, ITEMS, version=2)
    (damaged.path / "weights.safetensors").write_bytes(b"")
    announce(own, damaged)
    send_garbage(own)
    yield own
    remove_traces(own)


def send_garbage(settings: Settings) -> None:
    address, topics = settings.kafka.bootstrap_servers, settings.topics
    send(address, topics.models, [(0, b"k", value) for value in NO_ANNOUNCEMENTS])
    send(address, topics.items, [(0, b"\xff", b"{}")])
    send(address, topics.items, [(0, b"item", value) for value in NO_ITEMS])


def click_all(settings: Settings) -> None:
    """One more event of every user."""
    send(
        settings.kafka.bootstrap_servers,
        settings.topics.interactions,
        [(user % 4, b"k", click(f"user-{user}", ITEMS[user % 12])) for user in USERS],
    )


def wait_for_all(settings: Settings, n: int) -> None:
    expected = {f"user-{user}": n for user in USERS}
    wait_until(lambda: history_lengths(settings) == expected, f"{n} events each")


def partition_folder(settings: Settings, partition: int) -> Path:
    return settings.worker.data_dir / "states" / f"partition-{partition}"


def test_what_is_no_release_leaves_the_last_good_one_serving(settings: Settings) -> None:
    """At the start and later: refused, counted and logged; a good one is still heard."""
    rejected = 'lrurec_model_swaps_total{result="rejected"}'
    with running_worker(settings) as worker:
        worker.wait_until_ready()
        click_all(settings)
        wait_for_all(settings, 1)
        assert {made.model_version for made in newest(settings).values()} == {1}
        assert "expected SHA-256" in worker.log()
        at_start = worker.metric(rejected)
        assert at_start >= 3  # one damaged, two that are nowhere
        assert worker.metric("lrurec_model_rejected_version") > 0

        send_garbage(settings)
        announce(settings, random_release(settings.trainer.releases_dir, ITEMS, version=3))
        wait_until(
            lambda: worker.metric('lrurec_model_swaps_total{result="loaded"}') == 2, "a swap"
        )
        assert worker.metric(rejected) == at_start + 2
        assert worker.metric("lrurec_model_rejected_version") == 0
        click_all(settings)
        wait_for_all(settings, 2)
        assert {made.model_version for made in newest(settings).values()} == {3}
        assert "Traceback" not in worker.log()
        wait_until(
            lambda: worker.metric("lrurec_store_rows_written_total") >= 2 * len(USERS), "writes"
        )
        worker.kill()  # an orderly stop would leave no log of writes


def test_a_damaged_row_ends_the_worker_and_a_cut_log_of_writes_does_not(
    settings: Settings,
) -> None:
    """What the log of writes lacks comes from the changelog; a damaged row is never used."""
    cut = 0
    for log in partition_folder(settings, WAL_CUT).glob("*.log"):
        content = log.read_bytes()
        log.write_bytes(content[: len(content) // 2])
        cut += len(content)
    assert cut
    store = RocksStore(settings.worker.data_dir / "states")
    store.open(ROW_DAMAGED)
    (row,) = store.get(ROW_DAMAGED, [b"user-4"])
    assert row is not None
    store.write(ROW_DAMAGED, [(b"user-4", row[:300] + bytes([row[300] ^ 1]) + row[301:])], None)
    store.close_all()
    (settings.worker.data_dir.parent / "worker.log").unlink()

    with running_worker(settings) as worker:
        click_all(settings)
        assert worker.wait() == ExitCode.DAMAGED_ROW

    assert f"partition {ROW_DAMAGED}: a local state row is damaged" in last_words(worker)
    assert history_lengths(settings)["user-4"] == 2


def test_damaged_files_end_the_worker_until_they_are_removed(settings: Settings) -> None:
    """One line names the folder to remove; then all is as if nothing had happened."""
    folder = partition_folder(settings, FILES_GONE)
    (folder / "CURRENT").unlink()
    (settings.worker.data_dir.parent / "worker.log").unlink()

    with running_worker(settings) as worker:
        assert worker.wait() == ExitCode.STORE
    said = last_words(worker)
    assert f"{folder}: expected the files of a state store" in said
    assert "remove this folder and start again" in said

    shutil.rmtree(folder)
    with running_worker(settings) as worker:
        worker.wait_until_ready()
        wait_for_all(settings, 3)
        click_all(settings)
        wait_for_all(settings, 4)
        assert worker.stop() == 0


def test_a_changelog_that_lost_its_end_takes_nothing_back(settings: Settings) -> None:
    """Local rows that are newer stay and are published again, also where it has older ones."""
    topic = changelog_name(settings.worker.app_id)
    older: dict[tuple[int, bytes | None], bytes | None] = {}
    for record in read_partitions(settings.kafka, topic):
        older.setdefault((record.partition, record.key), record.value)
    with admin_client(settings.kafka.bootstrap_servers) as admin:
        admin.delete_topics([topic])
    wait_until(lambda: topic not in existing_topics(settings), "the end of the topic")
    create_topics(settings)
    send(
        settings.kafka.bootstrap_servers,
        topic,
        [(partition, key, row) for (partition, key), row in older.items()],
    )

    with running_worker(settings) as worker:
        worker.wait_until_ready()
        click_all(settings)
        wait_for_all(settings, 5)
        assert worker.stop() == 0
    report = verify(settings)
    assert report.holds, report.findings
    assert report.offsets.pending == 0


@pytest.mark.parametrize("user", ["nobody-yet", "user-7"])
def test_a_row_of_no_known_format_ends_the_worker_until_it_is_taken_away(
    settings: Settings, user: str
) -> None:
    """Whether its user has a row here or not, the line has its place; what it says to do helps."""
    address, key = settings.kafka.bootstrap_servers, user.encode()
    topic = changelog_name(settings.worker.app_id)
    send(address, topic, [(FORMAT_UNKNOWN, key, b"LRst\x09\0\0\0" + bytes(40))])
    send(
        address,
        settings.topics.interactions,
        [(FORMAT_UNKNOWN, b"k", click(user, ITEMS[0]))],
    )
    (settings.worker.data_dir.parent / "worker.log").unlink()

    with running_worker(settings) as worker:
        assert worker.wait() == ExitCode.STORE
    said = last_words(worker)
    assert f"partition {FORMAT_UNKNOWN}, key {key!r}: row 0 of 1: expected a state row" in said
    assert "got version 9" in said
    assert f"remove the folder partition-{FORMAT_UNKNOWN} of" in said

    send(address, topic, [(FORMAT_UNKNOWN, key, None)])
    shutil.rmtree(partition_folder(settings, FORMAT_UNKNOWN))
    with running_worker(settings) as worker:
        worker.wait_until_ready()
        wait_until(lambda: history_lengths(settings).get(user) == 1, "the user begins anew")
        assert worker.stop() == 0
