"""A changelog that is made anew, and folders that do not hold all that it held."""

from pathlib import Path

import pytest
from kafka.structs import TopicPartition

from pipeline.cluster.topics import changelog_name, create_topics, existing_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import Settings
from pipeline.verification.verify import verify
from tests.bad_records import last_words
from tests.integration.test_restore import another, click_all, owned, wait_for_all
from tests.integration.test_restore import stream as stream  # a fixture
from tests.kafka import admin_client, wait_until
from tests.worker_process import running_worker

READ_AGAIN = "the rest is read again"


@pytest.fixture
def stale(stream: Settings, tmp_path: Path) -> Settings:
    """A worker whose folder holds less than the other's; the changelog has nothing any more.

    Every user has three events. It owned half of the partitions while the second ones came.
    """
    second = another(stream, tmp_path / "second")
    with running_worker(stream) as whole:
        whole.wait_until_ready()
        click_all(stream)
        wait_for_all(stream, 1)
        with running_worker(second) as worker:
            worker.wait_until_ready()
            wait_until(lambda: owned(whole) == owned(worker) == 2, "two partitions each")
            click_all(stream)
            wait_for_all(stream, 2)
            assert worker.stop() == 0
        wait_until(lambda: owned(whole) == 4, "all partitions")
        click_all(stream)
        wait_for_all(stream, 3)
        assert whole.stop() == 0
    topic = changelog_name(stream.worker.app_id)
    with admin_client(stream.kafka.bootstrap_servers) as admin:
        admin.delete_topics([topic])
    wait_until(lambda: topic not in existing_topics(stream), "the end of the topic")
    create_topics(stream)
    return second


def test_what_a_stale_folder_lacks_is_read_again(stream: Settings, stale: Settings) -> None:
    """Its rows are no start for the events that follow, whoever comes first."""
    click_all(stream)
    with running_worker(stale) as first:
        first.wait_until_ready()
        wait_for_all(stream, 4)
        assert first.log().count(READ_AGAIN) == 4
        with running_worker(stream) as whole:
            whole.wait_until_ready()
            wait_until(lambda: owned(first) == owned(whole) == 2, "two partitions each")
            click_all(stream)
            wait_for_all(stream, 5)
            assert READ_AGAIN not in whole.log()
            assert whole.stop() == 0
        assert first.stop() == 0
    report = verify(stream)
    assert report.holds, report.findings


@pytest.mark.parametrize("die_at", ["rows-sent:2", "committed:2"])
def test_a_kill_before_all_is_read_again_hides_nothing(
    stream: Settings, stale: Settings, tmp_path: Path, die_at: str
) -> None:
    """Whoever comes next has no folder at all, and a changelog that holds some of it."""
    with running_worker(stale, die_at=die_at) as first:
        first.wait()
        assert READ_AGAIN in first.log()

    with running_worker(another(stream, tmp_path / "third")) as worker:
        worker.wait_until_ready()
        click_all(stream)
        wait_for_all(stream, 4)
        assert worker.stop() == 0
    report = verify(stream)
    assert report.holds, report.findings


def test_a_stale_folder_does_not_serve_where_the_rest_is_gone(
    stream: Settings, stale: Settings
) -> None:
    """Its worker ends and says whose folder has it; with that, all is there."""
    gone = {TopicPartition(stream.topics.interactions, number): 21 for number in range(4)}
    with admin_client(stream.kafka.bootstrap_servers) as admin:
        admin.delete_records(gone)
    with running_worker(stale) as first:
        assert first.wait() == ExitCode.HOLE
    assert "Start the worker first that had the partition last" in last_words(first)

    with running_worker(stream) as whole:
        whole.wait_until_ready()
        click_all(stream)
        wait_for_all(stream, 4)
        assert READ_AGAIN not in whole.log()
        assert whole.stop() == 0
