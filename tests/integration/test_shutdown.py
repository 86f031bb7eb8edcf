"""Stops of real workers: clean at any moment, and known to the group; restarts under a name."""

import dataclasses
import random
import re
import time
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.topics import create_topics
from pipeline.settings import MetricsSettings, Settings
from pipeline.verification.verify import verify
from tests.bad_records import click
from tests.benchmarks.group import SPEAKS_TO_KAFKA
from tests.kafka import admin_client, committed_lag, free_port, send, wait_until
from tests.worker_process import WorkerProcess, running_worker

SEED = 4
STOPS = 8
PARTITIONS = 4
JOIN_S = 1.0  # a rebalance of two workers takes less


@pytest.fixture
def stream(settings: Settings) -> Settings:
    """Topics."""
    create_topics(settings)
    return settings


def worker_settings(settings: Settings, name: str, **kafka: Any) -> Settings:
    """Settings of one of several workers."""
    data_dir = settings.worker.data_dir.parent / name / "worker"
    return dataclasses.replace(
        settings,
        kafka=dataclasses.replace(settings.kafka, **kafka),
        metrics=MetricsSettings(port=free_port()),
        worker=dataclasses.replace(settings.worker, data_dir=data_dir),
    )


def clicks(settings: Settings, n: int) -> None:
    records = [(i % PARTITIONS, b"u", click(f"user-{i % 40}", f"item-{i % 9}")) for i in range(n)]
    send(settings.kafka.bootstrap_servers, settings.topics.interactions, records)


def members(admin: Any, settings: Settings) -> int:
    """How many members the broker counts in the workers' group."""
    group = settings.worker.app_id
    return len(admin.describe_groups([group])[group]["members"])


def stop(worker: WorkerProcess) -> tuple[int, float]:
    """SIGTERM; its exit code, and how long it took."""
    began_s = time.monotonic()
    code = worker.stop(2 * worker.settings.worker.stop_deadline_s)
    return code, time.monotonic() - began_s


def test_a_stop_at_any_moment_of_a_rebalance_is_clean_and_leaves_no_member(
    stream: Settings,
) -> None:
    """The one that joins or the one that was there: it ends with 0, the other owns all at once."""
    rng = random.Random(SEED)
    workers = [WorkerProcess(worker_settings(stream, "w0"))]
    longest_s = 0.0
    try:
        workers[0].wait_until_ready()
        with admin_client(stream.kafka.bootstrap_servers) as admin:
            for n in range(1, STOPS + 1):
                clicks(stream, 400)
                workers.append(WorkerProcess(worker_settings(stream, f"w{n}")))
                wait_until(lambda: members(admin, stream) == 2, "a second member", 60)
                delay_s = rng.uniform(0, JOIN_S)
                time.sleep(delay_s)
                leaving = workers.pop(rng.randrange(2))

                code, took_s = stop(leaving)

                left = members(admin, stream)
                said = f"seed {SEED}, stop {n}, {delay_s:.2f} s into the join: {leaving.log()}"
                assert code == 0, said
                assert took_s < stream.worker.stop_deadline_s, said
                assert left == 1, said  # it said good-bye: nobody waits for its session to end
                longest_s = max(longest_s, took_s)
                (survivor,) = workers
                began_s = time.monotonic()
                wait_until(lambda w=survivor: owns(w) == PARTITIONS, "all partitions", 30)
                assert time.monotonic() - began_s < stream.kafka.session_timeout_s / 2, said
        wait_until(lambda: committed_lag(stream) == 0, "everything answered")
        assert stop(workers[0])[0] == 0
    finally:
        for worker in workers:
            if worker.process.poll() is None:
                worker.kill()
    print(f"longest stop {longest_s:.2f} s")

    report = verify(stream)

    assert report.holds, report.findings
    assert report.offsets.applied == 400 * STOPS


def owns(worker: WorkerProcess) -> float:
    """How many partitions a worker owns; 0 before it can tell."""
    try:
        return worker.metric("lrurec_partitions_owned")
    except OSError:
        return 0


def test_a_restart_under_the_same_name_moves_no_partition(stream: Settings) -> None:
    """Within its session; the other worker is not even asked, and each event is answered."""
    first = worker_settings(stream, "first", group_instance_id="first", session_timeout_s=30.0)
    other = worker_settings(stream, "other", group_instance_id="other", session_timeout_s=30.0)
    with running_worker(other) as stays, running_worker(first) as goes:
        for worker in (stays, goes):
            wait_until(lambda w=worker: owns(w) == 2, "two partitions each", 60)
        owned, seen = assigned(goes), generations(stays)
        clicks(stream, 400)

        assert goes.stop() == 0
        *_, stopping, stopped = goes.log().splitlines()
        assert re.search(r"INFO .*: stopping: partitions \[\d, \d\]$", stopping)
        assert stopped.endswith(": stopped")
        goes.log_file.rename(Path(f"{goes.log_file}.before"))
        clicks(stream, 400)
        with running_worker(first) as back:
            back.wait_until_ready()
            wait_until(lambda: committed_lag(stream) == 0, "everything answered")

            assert SPEAKS_TO_KAFKA in back.log()  # from where on a pause is measured
            assert assigned(back) == owned
            assert generations(stays) == seen
            assert {back.stop(), stays.stop()} == {0}

    report = verify(stream)
    assert report.holds, report.findings
    assert report.offsets.applied == 800


def generations(worker: WorkerProcess) -> list[str]:
    """Every assignment that a worker was given, as its log has them."""
    return re.findall(r"generation \d+: kept partitions.*", worker.log())


def assigned(worker: WorkerProcess) -> set[str]:
    """The partitions of a worker's last assignment."""
    return set(re.findall(r"\d+", " ".join(re.findall(r"\[([\d, ]*)\]", generations(worker)[-1]))))
