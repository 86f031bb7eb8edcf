"""A user is forgotten while real workers run, die and start anew: state, changelog and list go."""

import dataclasses
import random
import shutil
import signal
import time
from pathlib import Path

import msgspec
import pytest

from pipeline.cluster.records import read_partitions
from pipeline.cluster.topics import changelog_name, create_topics
from pipeline.settings import MetricsSettings, Settings
from pipeline.users import block, forget
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.kafka import committed_lag, free_port, send, wait_until
from tests.releases import random_release
from tests.worker_process import WorkerProcess, running_worker

ITEMS = [f"item-{i}" for i in range(40)]
USERS = 12
STAGES = ("rows-sent", "committed", "written")
HOUR_MS = 3_600_000


@pytest.fixture
def stream(settings: Settings) -> Settings:
    """Topics and a release."""
    own = dataclasses.replace(
        settings,
        metrics=MetricsSettings(port=free_port()),
        kafka=dataclasses.replace(settings.kafka, session_timeout_s=4.0),
    )
    create_topics(own)
    announce(own, random_release(own.trainer.releases_dir, ITEMS))
    return own


def now_ms() -> int:
    return time.time_ns() // 1_000_000


def produce(settings: Settings, *users: int, happened_ms: int | None = None) -> None:
    """Send an event of each of these users."""
    rng = random.Random(len(users))
    records = []
    for user in users:
        event = {
            "user_id": f"user-{user}",
            "item_id": rng.choice(ITEMS),
            "timestamp_ms": now_ms() if happened_ms is None else happened_ms,
        }
        records.append((user % 4, b"user-%d" % user, msgspec.json.encode(event)))
    send(settings.kafka.bootstrap_servers, settings.topics.interactions, records)


def last_values(settings: Settings, topic: str) -> dict[str, bytes | None]:
    """What a log-compacted topic says of each key in the end."""
    return {
        (record.key or b"").decode(): record.value
        for record in read_partitions(settings.kafka, topic)
    }


def users_with_row(settings: Settings) -> set[str]:
    rows = last_values(settings, changelog_name(settings.worker.app_id))
    return {user for user, row in rows.items() if row is not None}


def history_lengths(settings: Settings) -> dict[str, int | None]:
    """By user, how many events the last list reflects; None where the list was taken back."""
    lists = last_values(settings, settings.topics.recommendations)
    return {
        user: None if value is None else msgspec.json.decode(value)["history_length"]
        for user, value in lists.items()
    }


def all_committed(settings: Settings) -> None:
    wait_until(lambda: committed_lag(settings) == 0, "everything committed")


@pytest.mark.parametrize("transactional", [False, True])
def test_a_forgotten_user_leaves_nothing_and_may_come_back(
    stream: Settings, tmp_path: Path, transactional: bool
) -> None:
    """Nor does anything come back by a late event, a lost disk or a group that begins anew."""
    recommend = dataclasses.replace(stream.recommend, transactional=transactional)
    stream = dataclasses.replace(stream, recommend=recommend)
    everyone = {f"user-{user}" for user in range(USERS)}
    with running_worker(stream) as worker:
        worker.wait_until_ready()
        produce(stream, *range(USERS), *range(USERS))
        all_committed(stream)
        assert users_with_row(stream) == everyone

        lists = last_values(stream, stream.topics.recommendations)
        before_ms = now_ms()
        forget(stream, "user-5", before_ms)
        forget(stream, "user-7", before_ms)
        forget(stream, "a stranger", before_ms)
        wait_until(lambda: users_with_row(stream) == everyone - {"user-5", "user-7"}, "two erased")
        wait_until(lambda: worker.metric("lrurec_users_forgotten_total") == 2, "two counted")
        lengths = history_lengths(stream)
        assert lengths == dict.fromkeys(everyone, 2) | {"user-5": None, "user-7": None}

        topic = stream.topics.recommendations
        send(stream.kafka.bootstrap_servers, topic, [(1, b"user-5", lists["user-5"])])
        assert history_lengths(stream)["user-5"] == 2  # of a worker that was cut off
        forget(stream, "user-5", before_ms)
        wait_until(lambda: history_lengths(stream) == lengths, "taken back again")

        produce(stream, 5, 7, happened_ms=before_ms - HOUR_MS)  # a phone that was offline
        produce(stream, 7)
        all_committed(stream)
        assert worker.metric('lrurec_events_total{result="forgotten"}') == 2
        assert history_lengths(stream) == lengths | {"user-7": 1}
        assert worker.stop() == 0

    shutil.rmtree(stream.worker.data_dir)
    with running_worker(stream) as worker:
        worker.wait_until_ready()
        produce(stream, 7, 1)
        all_committed(stream)
        assert worker.stop() == 0
    lengths |= {"user-7": 2, "user-1": 3}
    assert history_lengths(stream) == lengths
    assert users_with_row(stream) == everyone - {"user-5"}
    assert_holds(stream, forgotten=6)

    anew = dataclasses.replace(
        stream,
        worker=dataclasses.replace(
            stream.worker, app_id=f"{stream.worker.app_id}-anew", data_dir=tmp_path / "anew"
        ),
    )
    create_topics(anew)
    with running_worker(anew) as worker:
        all_committed(anew)
        assert worker.stop() == 0
    assert users_with_row(anew) == everyone - {"user-5"}
    assert history_lengths(anew) == lengths


def test_kills_while_users_are_forgotten_leave_no_list_behind(stream: Settings) -> None:
    """State and list go in one transaction: the next worker finds both, or neither."""
    with running_worker(stream) as worker:
        worker.wait_until_ready()
        produce(stream, *range(USERS))
        all_committed(stream)
        assert worker.stop() == 0
    gone = set()
    for user, stage in enumerate(STAGES):
        gone.add(f"user-{user}")
        forget(stream, f"user-{user}", now_ms())
        with running_worker(stream, die_at=f"{stage}:1") as worker:  # in its only checkpoint
            assert worker.wait() == -signal.SIGKILL, worker.log()[-3000:]
        listed = {u for u, length in history_lengths(stream).items() if length is not None}
        assert listed == users_with_row(stream)

    with running_worker(stream) as worker:
        worker.wait_until_ready()
        wait_until(lambda: not gone & users_with_row(stream), "the rows are gone")
        produce(stream, 6)
        all_committed(stream)
        assert worker.stop() == 0

    assert users_with_row(stream) == {f"user-{user}" for user in range(USERS)} - gone
    assert {user: history_lengths(stream)[user] for user in gone} == dict.fromkeys(gone)
    assert_holds(stream, forgotten=len(gone))


def test_workers_that_die_while_users_are_forgotten_and_come_back(stream: Settings) -> None:
    """Two workers under load, one of which is killed and wiped in turn: all is as without that."""
    rng = random.Random(11)
    settings = [own_worker(stream, number) for number in range(2)]
    with running_worker(settings[0]) as first, running_worker(settings[1]) as second:
        workers = [first, second]
        for number in range(2):
            workers[number % 2].wait_until_ready()
            produce(stream, *rng.choices(range(USERS), k=200))
            for user in rng.sample(range(USERS), 2):
                forget(stream, f"user-{user}", now_ms() - rng.choice([0, 0, 1000, 100_000]))
            produce(stream, *rng.choices(range(USERS), k=200))
            time.sleep(rng.uniform(0, 1.5))
            workers[number % 2].kill()
            if number == 0:
                shutil.rmtree(settings[number % 2].worker.data_dir)
            workers[number % 2] = WorkerProcess(settings[number % 2])
        try:
            for worker in workers:
                worker.wait_until_ready()
            produce(stream, *range(USERS))
            all_committed(stream)
            time.sleep(1.5)  # a command is heard within a second
            assert [worker.stop() for worker in workers] == [0, 0]
        finally:
            for worker in workers:
                worker.kill()
    assert users_with_row(stream) == {f"user-{user}" for user in range(USERS)}
    assert_holds(stream)


def own_worker(settings: Settings, number: int) -> Settings:
    """Settings of one of several workers."""
    folder = settings.worker.data_dir / str(number)
    return dataclasses.replace(
        settings,
        metrics=MetricsSettings(port=free_port()),
        worker=dataclasses.replace(settings.worker, data_dir=folder / "worker"),
    )


def assert_holds(settings: Settings, *, forgotten: int | None = None) -> None:
    """Whatever has been told is to be heard by now."""
    report = verify(settings, now_ms=now_ms() + HOUR_MS)
    assert report.holds, report
    assert report.states_unverifiable == report.offsets.missing == report.offsets.pending == 0
    assert forgotten in (None, report.offsets.forgotten)


def test_a_blocked_item_is_in_no_later_list(stream: Settings) -> None:
    """Of that user alone, and from a command to the next."""
    with running_worker(stream) as worker:
        worker.wait_until_ready()
        produce(stream, 5, 6)
        all_committed(stream)
        listed = _listed(stream)
        block(stream, "user-5", listed["user-5"][:4])
        time.sleep(1.5)  # a worker hears of it within a second
        produce(stream, 5, 6)
        all_committed(stream)
        assert worker.stop() == 0
    now_listed = _listed(stream)
    assert not set(now_listed["user-5"]) & set(listed["user-5"][:4])
    assert {len(items) for items in now_listed.values()} == {10}
    assert_holds(stream)


def _listed(settings: Settings) -> dict[str, list[str]]:
    lists = last_values(settings, settings.topics.recommendations)
    return {
        user: [item["item_id"] for item in msgspec.json.decode(value or b"")["items"]]
        for user, value in lists.items()
    }
