"""Restores and standbys of real workers: takeovers, a deadline, kept rows, a new changelog."""

import dataclasses
import re
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import changelog_name, create_topics, existing_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import MetricsSettings, Settings
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.bad_records import click, history_lengths, last_words
from tests.kafka import Way, admin_client, committed_lag, free_port, send, wait_until
from tests.releases import random_release
from tests.worker_process import WorkerProcess, running_worker

ITEMS = [f"item-{i}" for i in range(12)]
USERS = range(40)
SESSION_S = 4.0
RESTORED = "lrurec_restore_rows_total"
MISSES = 'lrurec_hot_row_reads_total{result="miss"}'
FOLLOWED = "lrurec_standby_rows_total"


@pytest.fixture
def stream(settings: Settings) -> Settings:
    """Topics and a release; a worker that was killed is missed soon."""
    own = dataclasses.replace(
        settings,
        metrics=MetricsSettings(port=free_port()),
        kafka=dataclasses.replace(settings.kafka, session_timeout_s=SESSION_S),
    )
    create_topics(own)
    announce(own, random_release(own.trainer.releases_dir, ITEMS))
    return own


def another(settings: Settings, folder: Path) -> Settings:
    """A worker of the same group, with a folder and a port of its own."""
    return dataclasses.replace(
        settings,
        metrics=MetricsSettings(port=free_port()),
        worker=dataclasses.replace(settings.worker, data_dir=folder / "worker"),
    )


def with_worker(settings: Settings, **changes: object) -> Settings:
    worker = dataclasses.replace(settings.worker, **changes)  # type: ignore[arg-type]
    return dataclasses.replace(settings, worker=worker)


def click_all(settings: Settings, times: int = 1) -> None:
    send(
        settings.kafka.bootstrap_servers,
        settings.topics.interactions,
        [
            (user % 4, b"k", click(f"user-{user}", ITEMS[(user + i) % 12]))
            for i in range(times)
            for user in USERS
        ],
    )


def wait_for_all(settings: Settings, n: int) -> None:
    expected = {f"user-{user}": n for user in USERS}
    wait_until(lambda: history_lengths(settings) == expected, f"{n} events each")
    wait_until(lambda: committed_lag(settings) == 0, "everything committed")


def owned(worker: WorkerProcess) -> float:
    return worker.metric("lrurec_partitions_owned")


def value(worker: WorkerProcess, series: str) -> float | None:
    """The value of a series that may not be there."""
    try:
        return worker.metric(series)
    except AssertionError:
        return None


def test_a_standby_takes_over_without_reading_everything_again(
    stream: Settings, tmp_path: Path
) -> None:
    """It has followed the partitions of a worker that is killed, and reads what is behind alone."""
    first_settings = with_worker(stream, standby_replicas=1)
    with running_worker(first_settings) as first:
        first.wait_until_ready()
        for n in range(1, 6):
            click_all(stream)
            wait_for_all(stream, n)
        with running_worker(another(first_settings, tmp_path / "second")) as second:
            second.wait_until_ready()
            wait_until(lambda: owned(first) == owned(second) == 2, "two partitions each")
            wait_until(lambda: second.metric("lrurec_standby_partitions") == 2, "two standbys")
            click_all(stream)
            wait_for_all(stream, 6)
            followed = second.metric(FOLLOWED)
            assert followed > 0
            for partition in range(4):
                series = f'lrurec_standby_lag_rows{{partition="{partition}"}}'
                wait_until(lambda s=series: value(second, s) in (None, 0.0), "a standby's end")
            restored_before = second.metric(RESTORED)

            first.kill()
            wait_until(lambda: owned(second) == 4, "all partitions", deadline_s=60)
            click_all(stream)
            wait_for_all(stream, 7)

            read_again = second.metric(RESTORED) - restored_before
            assert read_again <= len(USERS) / 2  # of the last checkpoint, at most
            assert second.metric("lrurec_standby_partitions") == 0
            (gained,) = re.findall(r"gained \[\d, \d\] after [\d.]+ s \((\d+) ", second.log())[-1:]
            assert int(gained) == read_again
            assert second.stop() == 0
    report = verify(stream)
    assert report.holds, report.findings
    assert report.offsets.pending == 0


def test_a_worker_waits_for_a_kafka_that_it_cannot_ask_for_the_changelog(
    stream: Settings, tmp_path: Path
) -> None:
    """The brokers that it was named are away while it gains partitions; it is as well as before."""
    way = Way(stream.kafka.bootstrap_servers)
    kafka = dataclasses.replace(stream.kafka, bootstrap_servers=way.address, connect_timeout_s=0.5)
    with (
        running_worker(dataclasses.replace(stream, kafka=kafka)) as first,
        running_worker(another(stream, tmp_path / "second")) as second,
    ):
        first.wait_until_ready()
        second.wait_until_ready()
        wait_until(lambda: owned(first) == owned(second) == 2, "two partitions each")

        way.shut()
        assert second.stop() == 0
        wait_until(lambda: "; trying again" in first.log(), "it has asked")
        way.open()

        wait_until(lambda: owned(first) == 4, "all partitions")
        assert first.stop() == 0
    way.shut()


def test_kept_partitions_keep_their_hot_rows_and_are_not_read_again(
    stream: Settings, tmp_path: Path
) -> None:
    """A rebalance costs a worker nothing of the partitions that stay with it."""
    with running_worker(stream) as first:
        first.wait_until_ready()
        click_all(stream)
        wait_for_all(stream, 1)
        misses, restored = first.metric(MISSES), first.metric(RESTORED)
        with running_worker(another(stream, tmp_path / "second")) as second:
            second.wait_until_ready()
            wait_until(lambda: owned(first) == owned(second) == 2, "two partitions each")
            click_all(stream)
            wait_for_all(stream, 2)

            assert first.metric(MISSES) == misses
            assert first.metric(RESTORED) == restored
            assert second.metric(RESTORED) == len(USERS) / 2
            assert second.stop() == 0
        assert first.stop() == 0


def test_a_demoted_partition_follows_and_a_standby_that_goes_away_is_closed(
    stream: Settings, tmp_path: Path
) -> None:
    """Every open store is an owned partition or a standby, whatever moved."""
    settings = with_worker(stream, standby_replicas=1)
    with running_worker(settings) as first:
        first.wait_until_ready()
        click_all(stream)
        wait_for_all(stream, 1)
        with running_worker(another(settings, tmp_path / "second")) as second:
            second.wait_until_ready()
            wait_until(lambda: owned(first) == owned(second) == 2, "two partitions each")
            wait_until(lambda: first.metric("lrurec_standby_partitions") == 2, "two demoted")
            assert open_partitions(first) == open_partitions(second) == {0, 1, 2, 3}
            with running_worker(another(settings, tmp_path / "third")) as third:
                third.wait_until_ready()
                everyone = (first, second, third)
                wait_until(
                    lambda: (
                        sum(map(owned, everyone)) == 4
                        and sum(w.metric("lrurec_standby_partitions") for w in everyone) == 4
                    ),
                    "four owners and four standbys",
                )
                for worker in everyone:
                    n = owned(worker) + worker.metric("lrurec_standby_partitions")
                    wait_until(lambda w=worker, n=n: len(open_partitions(w)) == n, "closed stores")
                assert third.stop() == 0
            click_all(stream)
            wait_for_all(stream, 2)
            assert second.stop() == 0
        assert first.stop() == 0


def open_partitions(worker: WorkerProcess) -> set[int]:
    """The databases that the process holds the lock files of."""
    paths = [Path(file.path) for file in psutil.Process(worker.process.pid).open_files()]
    return {
        int(path.parent.name.removeprefix("partition-"))
        for path in paths
        if path.name == "LOCK" and path.parent.name.startswith("partition-")
    }


def test_a_restore_that_takes_too_long_ends_the_worker(stream: Settings) -> None:
    """One line names the setting; nothing was acknowledged."""
    hasty = with_worker(stream, restore_deadline_s=0.001)
    hasty = dataclasses.replace(
        hasty, kafka=dataclasses.replace(hasty.kafka, connect_timeout_s=60.0)
    )
    with running_worker(hasty) as worker:
        assert worker.wait() == ExitCode.RESTORE

    assert "was not restored within 0.001 s (worker.restore-deadline-s)" in last_words(worker)


def test_a_longer_changelog_made_anew_takes_nothing_back(stream: Settings) -> None:
    """By offset it would continue the local rows; they are published to it again."""
    with running_worker(stream) as worker:
        worker.wait_until_ready()
        for n in (1, 2):
            click_all(stream)
            wait_for_all(stream, n)
        assert worker.stop() == 0
    topic = changelog_name(stream.worker.app_id)
    first: dict[tuple[int, bytes | None], bytes | None] = {}
    for record in read_partitions(stream.kafka, topic):
        first.setdefault((record.partition, record.key), record.value)
    with admin_client(stream.kafka.bootstrap_servers) as admin:
        admin.delete_topics([topic])
    wait_until(lambda: topic not in existing_topics(stream), "the end of the topic")
    create_topics(stream)
    old_rows = [(partition, key, row) for (partition, key), row in first.items()]
    send(stream.kafka.bootstrap_servers, topic, old_rows * 10)

    with running_worker(stream) as worker:
        worker.wait_until_ready()
        click_all(stream)
        wait_for_all(stream, 3)
        assert "it was made anew" in worker.log()
        assert worker.stop() == 0
    report = verify(stream)
    assert report.holds, report.findings


def test_a_changelog_made_anew_under_a_running_worker_ends_it_and_loses_nothing(
    stream: Settings,
) -> None:
    """Rows would follow that nothing before them explains; the next start publishes all of them."""
    topic = changelog_name(stream.worker.app_id)
    with running_worker(stream) as worker:
        worker.wait_until_ready()
        for n in (1, 2):
            click_all(stream)
            wait_for_all(stream, n)
        with admin_client(stream.kafka.bootstrap_servers) as admin:
            admin.delete_topics([topic])
        wait_until(lambda: topic not in existing_topics(stream), "the end of the topic")
        create_topics(stream)
        click_all(stream)
        assert worker.wait() == ExitCode.CHECKPOINT
        assert "Nothing is lost" in last_words(worker)

    with running_worker(stream) as worker:
        worker.wait_until_ready()
        wait_for_all(stream, 3)
        assert worker.stop() == 0
    report = verify(stream)
    assert report.holds, report.findings
