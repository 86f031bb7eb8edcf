"""Several worker processes under one supervisor: real processes on a real Kafka."""

import json
import signal
import time
from dataclasses import replace
from urllib.error import HTTPError
from urllib.request import urlopen

import msgspec
import psutil
import pytest

from pipeline.cluster.topics import all_topics, create_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import MetricsSettings, Settings
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.kafka import committed_lag, free_port, send, wait_until
from tests.releases import random_release
from tests.supervised_worker import running_supervisor

ITEMS = [f"item-{i}" for i in range(30)]
USERS = 40


@pytest.fixture
def stream(settings: Settings) -> Settings:
    """Topics, a release that is announced, a port for the metrics, and a short session."""
    return made_stream(settings)


def made_stream(settings: Settings) -> Settings:
    """What `stream` gives."""
    own = replace(
        settings,
        metrics=MetricsSettings(port=free_port()),
        kafka=replace(settings.kafka, session_timeout_s=6.0),
    )
    create_topics(own)
    announce(own, random_release(own.trainer.releases_dir, ITEMS))
    return own


def produce(settings: Settings, first: int, events: int) -> None:
    """Send events of 40 users, each user's to one of the four partitions."""
    values = [
        (
            i % USERS,
            {
                "user_id": f"user-{i % USERS}",
                "item_id": ITEMS[i * 7 % 30],
                "timestamp_ms": 1_700_000_000_000 + i,
            },
        )
        for i in range(first, first + events)
    ]
    send(
        settings.kafka.bootstrap_servers,
        settings.topics.interactions,
        [(user % 4, b"user-%d" % user, msgspec.json.encode(value)) for user, value in values],
    )


def assert_each_event_counts_once(settings: Settings, events: int) -> None:
    """Every state, offset and answer is what the log says."""
    report = verify(settings)

    assert report.holds, report
    assert report.offsets.applied == events


def runs(process: psutil.Process) -> bool:
    """Whether it runs, and is not merely waiting to be collected."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def test_two_processes_share_the_partitions(stream: Settings) -> None:
    """Each does half, the pages are one, and a stop commits everything: every event counts once.

    What is odd about the topics is said once, by the supervisor.
    """
    json_log = replace(
        stream,
        log=replace(stream.log, format="json"),
        topics=replace(stream.topics, replication_factor=2),
    )
    with running_supervisor(json_log) as supervised:
        supervised.wait_until_ready()
        produce(stream, 0, 2000)
        wait_until(
            lambda: sum(supervised.series("lrurec_events_total").values()) == 2000, "2,000 events"
        )

        by_process = supervised.series("lrurec_events_total")
        owned = supervised.series("lrurec_partitions_owned")
        up = supervised.series("lrurec_process_up")
        ready = supervised.series("lrurec_ready")
        light = psutil.Process(supervised.process.pid).memory_info().rss / 2**20
        children = supervised.children()
        code = supervised.stop()

    assert by_process == {"0": 1000.0, "1": 1000.0}
    assert owned == {"0": 2.0, "1": 2.0}
    assert up == ready == {"0": 1.0, "1": 1.0}
    assert light < 120
    assert code == 0
    assert not any(map(runs, children.values()))
    lines = [json.loads(line) for line in supervised.log().splitlines()]  # and nothing else
    assert {line.get("process") for line in lines} == {None, 0, 1}
    odd = [line for line in lines if "replicas: expected 2" in line["message"]]
    assert [line.get("process") for line in odd] == [None] * len(all_topics(stream))
    assert committed_lag(stream) == 0
    assert_each_event_counts_once(stream, 2000)


def test_a_killed_process_is_started_again_and_nothing_is_lost(stream: Settings) -> None:
    """The other goes on, the log says what ended, and what was in flight is read again."""
    with running_supervisor(stream) as supervised:
        supervised.wait_until_ready()
        produce(stream, 0, 1000)
        victim = supervised.children()[1]

        victim.kill()

        wait_until(lambda: supervised.series("lrurec_process_up")["1"] == 0, "it is missed", 5)
        produce(stream, 1000, 1000)
        wait_until(lambda: 1 in supervised.children(), "it is started again", 10)
        wait_until(lambda: committed_lag(stream) == 0, "all events", 60)
        supervised.wait_until_ready()
        assert supervised.series("lrurec_process_restarts_total") == {"0": 0.0, "1": 1.0}
        assert supervised.children()[1].pid != victim.pid
        assert supervised.stop() == 0

    assert f"process 1 (pid {victim.pid}) ended after" in supervised.log()
    assert "killed by SIGKILL; starting it again in 1 s" in supervised.log()
    assert_each_event_counts_once(stream, 2000)


def test_a_process_without_partitions_goes_over_to_a_release_too(settings: Settings) -> None:
    """Else it would seem to stay behind for ever, with nothing wrong."""
    narrow = made_stream(replace(settings, topics=replace(settings.topics, partitions=1)))
    with running_supervisor(narrow) as supervised:
        supervised.wait_until_ready()
        owned = supervised.series("lrurec_partitions_owned")

        announce(narrow, random_release(narrow.trainer.releases_dir, ITEMS, version=2))

        wait_until(
            lambda: supervised.series("lrurec_model_version") == {"0": 2.0, "1": 2.0},
            "release 2 in both",
        )
        assert sorted(owned.values()) == [0.0, 1.0]


def test_no_process_outlives_a_killed_supervisor(stream: Settings) -> None:
    """They stop by themselves, and the next supervisor takes the folders over from them."""
    with running_supervisor(stream) as supervised:
        supervised.wait_until_ready()
        produce(stream, 0, 1000)
        orphans = list(supervised.children().values())
        supervised.kill()
        killed_s = time.monotonic()

        with running_supervisor(stream) as following:
            gone, left = psutil.wait_procs(orphans, timeout=10)
            took_s = time.monotonic() - killed_s
            assert len(gone) == 2, left
            following.wait_until_ready()
            wait_until(lambda: committed_lag(stream) == 0, "all events")
            assert following.stop() == 0

    assert took_s < 10
    assert "the supervisor is gone: this process stops, too" in supervised.log()
    assert_each_event_counts_once(stream, 1000)


@pytest.mark.parametrize("number", [signal.SIGINT, signal.SIGHUP, signal.SIGTERM])
def test_a_signal_stops_processes_that_still_start(
    stream: Settings, number: signal.Signals
) -> None:
    """Any of the three ends all in good order, at any time."""
    with running_supervisor(stream) as supervised:
        children = supervised.wait_for_children()

        supervised.process.send_signal(number)

        assert supervised.wait(15) == 0, supervised.log()
        assert not any(map(runs, children.values()))


def test_a_process_that_stands_still_is_seen_and_killed_at_a_stop(stream: Settings) -> None:
    """/healthz names it while it cannot answer; the stop's deadline holds, and its code tells."""
    hasty = replace(stream, worker=replace(stream.worker, stop_deadline_s=1.0))
    with running_supervisor(hasty) as supervised:
        supervised.wait_until_ready()
        frozen = supervised.children()[1]

        frozen.suspend()
        # On a busy machine a signal takes its time, and what runs meanwhile answers.
        wait_until(lambda: frozen.status() == psutil.STATUS_STOPPED, "a stopped process")

        with pytest.raises(HTTPError, match="503") as answer:
            urlopen(f"http://127.0.0.1:{stream.metrics.port}/healthz", timeout=10)
        with answer.value as page:
            assert "process 1: does not answer" in page.read().decode()
        assert supervised.series("lrurec_process_up") == {"0": 1.0, "1": 0.0}
        assert supervised.stop() == ExitCode.STOP_DEADLINE
        assert not runs(frozen)


def test_wrong_topics_are_told_in_one_line_before_anything_starts(settings: Settings) -> None:
    """As one process would tell it."""
    with running_supervisor(settings) as supervised:
        code = supervised.wait(20)

    (line,) = supervised.log().splitlines()
    assert code == 1
    assert line.startswith("lrurec worker: ")
    assert settings.topics.interactions in line
    assert "lrurec topics create" in line


def test_a_process_that_cannot_start_ends_all_with_its_code(stream: Settings) -> None:
    """What was never right is not tried again and again; its line says which process it was."""
    folder = stream.worker.data_dir
    folder.mkdir(parents=True)
    (folder / "process-1").write_text("a file where a folder should be")

    with running_supervisor(stream) as supervised:
        code = supervised.wait(40)

    assert code == 1
    assert "lrurec worker[1]: " in supervised.log()
    assert "process 1 (pid" in supervised.log()
    assert "exit code 1: the line before this one says why; stopping all" in supervised.log()


def test_a_second_supervisor_on_the_same_folder_is_refused_at_once(stream: Settings) -> None:
    """The message names the process that holds the folder."""
    other = replace(stream, metrics=MetricsSettings(port=0))
    with running_supervisor(stream) as first:
        first.wait_for_children()

        with running_supervisor(other) as second:
            assert second.wait(20) == 1

        assert f"is in use by the supervisor with process {first.process.pid}" in second.log()
        assert first.stop() == 0
