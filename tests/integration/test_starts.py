"""Starts that wait for what never comes: each ends, in time, with a line that says so."""

import os
import signal
import socket
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from pathlib import Path
from urllib.error import HTTPError
from urllib.request import urlopen

import psutil
import pytest

from pipeline.cluster import broker
from pipeline.cluster.topics import create_topics
from pipeline.engine.stop import ExitCode
from pipeline.settings import MetricsSettings, Settings
from pipeline.worker.releases import announce
from tests.bad_records import last_words, run_worker
from tests.kafka import free_port, unique_settings, wait_until
from tests.releases import random_release
from tests.supervised_worker import running_supervisor
from tests.worker_process import running_worker


def with_start_deadline(settings: Settings, seconds: float) -> Settings:
    """Settings with a port for the metrics whose starts may take so long."""
    return replace(
        settings,
        kafka=replace(settings.kafka, connect_timeout_s=1.0),
        worker=replace(settings.worker, restore_deadline_s=seconds - 1.0),
        metrics=MetricsSettings(port=free_port()),
    )


@contextmanager
def mute_server() -> Iterator[str]:
    """The address of a server that takes connections and never says a word."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        yield f"127.0.0.1:{server.getsockname()[1]}"


def test_a_kafka_that_answers_nothing_ends_a_worker_in_time(tmp_path: Path) -> None:
    """It takes the connection; that is all that ever comes. The last line says it."""
    with mute_server() as address:
        settings = unique_settings(address, tmp_path)

        code, lines = run_worker(settings, "--kafka.connect-timeout-s", "1")

    assert code == 1
    assert lines[-1].startswith(f"lrurec worker: Kafka at {address} does not take this program's ")
    assert "timed out" in lines[-1]


def test_a_process_that_is_frozen_in_its_start_is_unhealthy_and_started_again(
    settings: Settings,
) -> None:
    """It cannot end itself; whoever watches it sees that it starts for too long, and kills it."""
    stream = with_start_deadline(settings, 4.0)
    create_topics(stream)
    with running_supervisor(stream) as supervised:
        frozen = supervised.wait_for_children()[1]
        frozen.suspend()
        unhealthy = set[str]()

        def is_unhealthy() -> bool:
            try:
                urlopen(f"http://127.0.0.1:{stream.metrics.port}/healthz", timeout=10).close()
            except HTTPError as answer:
                with answer:
                    unhealthy.update(answer.read().decode().split("; "))
            return any(line.startswith("process 1: starting for ") for line in unhealthy)

        wait_until(is_unhealthy, "it is seen")
        wait_until(lambda: supervised.children().get(1, frozen) != frozen, "a new one")

        assert f"process 1 (pid {frozen.pid}) has not started in 14 s: killing it" in (
            supervised.log()
        )
        assert "killed by SIGKILL; starting it again in 1 s" in supervised.log()
        assert supervised.stop() == 0


def test_processes_that_wait_in_their_start_for_ever_end_and_are_started_again(
    settings: Settings, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A compiler that does not come back, say.

    Until then they show no metrics: zeros would look like workers without a release.
    """
    stream = with_start_deadline(settings, 8.0)
    stream = replace(stream, worker=replace(stream.worker, cache_dir=tmp_path / "nothing-yet"))
    create_topics(stream)
    announce(stream, random_release(stream.trainer.releases_dir, ["item"]))
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\nwhile kill -0 $PPID; do sleep 0.1; done\n")
    compiler.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")  # noqa: TID251

    with running_supervisor(stream) as supervised:
        first = supervised.wait_for_children()
        wait_until(lambda: supervised.series("lrurec_process_up").get("0"), "it answers")
        ours, shown = set[str](), {"lrurec_process_up", "lrurec_process_restarts_total"}

        def is_another() -> bool:
            ours.update(supervised.names())
            return supervised.children().get(0, first[0]) != first[0]

        wait_until(is_another, "a new one", 60)
        assert ours == shown

        log = supervised.log()
        assert "the start took longer than 8 s (kafka.connect-timeout-s and worker." in log
        assert "exit code 77: records waited and none was finished, or its start took too" in log
        assert "starting it again in 1 s" in log
        assert supervised.stop() == 0


@pytest.fixture
def own_broker(tmp_path: Path) -> Iterator[Settings]:
    """A Kafka of this test alone, which it may freeze."""
    address = f"127.0.0.1:{broker.free_port()}"
    settings = unique_settings(address, tmp_path)
    port = int(address.rpartition(":")[2])
    settings = replace(settings, broker=replace(settings.broker, port=port))
    info = broker.start(settings.broker)
    try:
        yield settings
    finally:
        psutil.Process(info.pid).resume()
        broker.stop(settings.broker)


def test_a_group_that_never_answers_ends_a_worker(own_broker: Settings) -> None:
    """Kafka stands still behind the worker's checks: no partition comes, and no error either."""
    settings = with_start_deadline(own_broker, 25.0)
    create_topics(settings)
    info = broker.status(settings.broker)
    assert info is not None

    with running_worker(settings) as worker:

        def health() -> str:
            try:
                with urlopen(f"http://127.0.0.1:{settings.metrics.port}/healthz") as answer:
                    return str(answer.read().decode())
            except OSError:
                return ""

        wait_until(health, "its checks are done")
        os.kill(info.pid, signal.SIGSTOP)

        assert health().startswith("starting for ")
        assert worker.wait(60) == ExitCode.STALLED

    assert "the start took longer than 25 s" in last_words(worker)
