"""A real worker process on a real Kafka: answers, swaps, refuses, stops."""

import dataclasses
import os
import socket
from collections.abc import Iterator
from pathlib import Path

import msgspec
import pytest
import torch

from models.config import ModelConfig
from models.recommender import Recommender
from models.release import read_release
from pipeline.__main__ import main
from pipeline.cluster.records import Record, read_partitions
from pipeline.cluster.topics import create_topics
from pipeline.settings import MetricsSettings, Settings, settings_flags
from pipeline.worker.releases import announce
from pipeline.worker.wire import Recommendation
from tests.bad_records import run_worker
from tests.kafka import free_port, send, wait_until
from tests.releases import random_release, release_of
from tests.worker_process import WorkerProcess, running_worker

ITEMS = [f"item-{i}" for i in range(30)]


@pytest.fixture
def stream(settings: Settings) -> Settings:
    """Topics, a release that is announced, and a port for the worker's metrics."""
    own = dataclasses.replace(settings, metrics=MetricsSettings(port=free_port()))
    create_topics(own)
    announce(own, random_release(own.trainer.releases_dir, ITEMS))
    return own


@pytest.fixture
def worker(stream: Settings) -> Iterator[WorkerProcess]:
    """A worker whose partitions flow."""
    with running_worker(stream) as running:
        running.wait_until_ready()
        yield running


def event(user: str, item: str, timestamp_ms: int = 1_700_000_000_000) -> bytes:
    return msgspec.json.encode({"user_id": user, "item_id": item, "timestamp_ms": timestamp_ms})


def produce(settings: Settings, events: list[tuple[int, bytes]]) -> None:
    """Send (user number, value) pairs; a user's events go to one partition."""
    topic = settings.topics.interactions
    records = [(user % 4, b"user-%d" % user, value) for user, value in events]
    send(settings.kafka.bootstrap_servers, topic, records)


def newest(settings: Settings) -> dict[bytes, Recommendation]:
    """Each user's newest recommendation, the one that reflects the highest offset."""
    found: dict[bytes, Recommendation] = {}
    for record in read_partitions(settings.kafka, settings.topics.recommendations):
        made = msgspec.json.decode(record.value or b"", type=Recommendation)
        assert record.key is not None
        if record.key not in found or made.event.offset >= found[record.key].event.offset:
            found[record.key] = made
    return found


def dead_letters(settings: Settings) -> list[Record]:
    return list(read_partitions(settings.kafka, settings.topics.dead_letters))


def test_every_event_is_answered_and_bad_ones_are_kept(worker: WorkerProcess) -> None:
    """Each user's newest answer reflects all of the user's events; what is no event is kept."""
    settings = worker.settings
    events = [
        (user, event(f"user-{user}", ITEMS[(user + i) % 30]))
        for i in range(9)
        for user in range(13)
    ]
    bad = [
        (1, b"{nonsense"),
        (2, b"[]"),
        (3, b'{"user_id":"u"}'),
        (0, b'{"user_id":"","item_id":"x"}'),
    ]

    produce(settings, events[:50] + bad + events[50:])

    wait_until(
        lambda: [made.history_length for made in newest(settings).values()] == [9] * 13,
        "13 users with 9 events each",
    )
    for made in newest(settings).values():
        assert len(made.items) == 10
        assert made.source == "model"
        assert made.model_version == 1
    wait_until(lambda: len(dead_letters(settings)) == 4, "4 dead letters")
    kept = {record.value: dict(record.headers) for record in dead_letters(settings)}
    assert set(kept) == {value for _, value in bad}
    assert kept[b"[]"]["lrurec-reason"] == b"not_object"
    assert kept[b"[]"]["lrurec-partition"] == b"2"
    assert worker.metric("lrurec_stale_states_served_total") == 0
    assert worker.metric('lrurec_events_total{result="applied"}') == 13 * 9
    assert worker.stop() == 0


def test_a_running_worker_goes_over_to_an_announced_release(worker: WorkerProcess) -> None:
    """States are rebuilt for new weights of another shape; a damaged release is refused."""
    settings = worker.settings
    produce(settings, [(user, event(f"user-{user}", ITEMS[user])) for user in range(8)])
    wait_until(lambda: len(newest(settings)) == 8, "8 users answered")
    folder = settings.trainer.releases_dir

    announce(settings, random_release(folder, ITEMS[:20], version=2, hidden_size=12, max_length=6))
    wait_until(lambda: worker.metric('lrurec_model_swaps_total{result="loaded"}') == 2, "a swap")
    damaged = random_release(folder, ITEMS, version=3)
    weights = damaged.path / "weights.safetensors"
    content = bytearray(weights.read_bytes())
    content[-1] ^= 1
    weights.write_bytes(content)
    announce(settings, damaged)
    wait_until(
        lambda: worker.metric('lrurec_model_swaps_total{result="rejected"}') == 1, "a refusal"
    )
    wait_until(lambda: worker.metric("lrurec_model_rejected_version") == 3, "its version")
    produce(settings, [(user, event(f"user-{user}", ITEMS[user + 1])) for user in range(8)])

    wait_until(
        lambda: {made.model_version for made in newest(settings).values()} == {2},
        "every answer by release 2",
    )
    assert worker.metric("lrurec_stale_states_served_total") == 0
    assert worker.metric("lrurec_states_rebuilt_total") == 8
    assert "expected SHA-256" in worker.log()


def test_a_worker_that_can_serve_no_announced_release_does_not_start(settings: Settings) -> None:
    """It would cut states to what it remembers without one, and send what is popular instead."""
    create_topics(settings)
    release = random_release(settings.trainer.releases_dir, ITEMS)
    announce(settings, release)
    away = settings.trainer.releases_dir.with_name("not-mounted")
    settings.trainer.releases_dir.rename(away)

    code, (*_, line) = run_worker(settings)

    assert code == 1
    assert "of the 1 releases announced there none can be served" in line
    assert str(release.path) in line
    away.rename(settings.trainer.releases_dir)
    own = dataclasses.replace(settings, metrics=MetricsSettings(port=free_port()))
    with running_worker(own) as worker:
        worker.wait_until_ready()


def test_a_worker_starts_with_the_release_before_a_record_that_is_none(settings: Settings) -> None:
    """A number that no release can have announces nothing: at a start and while it runs."""
    create_topics(settings)
    own = dataclasses.replace(settings, metrics=MetricsSettings(port=free_port()))
    announce(own, random_release(own.trainer.releases_dir, ITEMS))
    rest = b',"location":"/nowhere","manifest_sha256":"00","created":"x"}'
    endless = (0, b"x", b'{"version":' + b"9" * 400 + rest)
    send(own.kafka.bootstrap_servers, own.topics.models, [endless])

    with running_worker(own) as worker:
        worker.wait_until_ready()
        send(own.kafka.bootstrap_servers, own.topics.models, [endless])
        line = "offset 2: no announcement of a release"
        wait_until(lambda: line in worker.log(), "it reads the second one, too")
        assert "offset 1: no announcement of a release" in worker.log()
        assert worker.metric("lrurec_model_version") == 1
        assert worker.stop() == 0


def test_releases_made_to_harm_change_nothing(stream: Settings, tmp_path: Path) -> None:
    """A running worker refuses each, hears of the next, and starts with the last good one."""
    pipe = random_release(tmp_path, ITEMS, version=2)
    (pipe.path / "weights.safetensors").unlink()
    os.mkfifo(pipe.path / "weights.safetensors")
    not_finite = Recommender(ModelConfig(n_items=len(ITEMS), hidden_size=8, state_size=16))
    with torch.no_grad():
        not_finite.item_embedding[:2] = 0.01
        not_finite.embedding_norm.weight.fill_(3e38)
    wide = Recommender(
        ModelConfig(n_items=len(ITEMS), hidden_size=1, state_size=120_000, n_blocks=1)
    )

    with running_worker(stream) as worker:
        worker.wait_until_ready()
        announce(stream, pipe)
        announce(stream, release_of(tmp_path, not_finite, ITEMS, version=3))
        announce(stream, release_of(tmp_path, wide, ITEMS, version=4))
        wait_until(
            lambda: worker.metric('lrurec_model_swaps_total{result="rejected"}') == 3, "refusals"
        )
        produce(stream, [(0, event("user", ITEMS[0]))])
        wait_until(lambda: len(newest(stream)) == 1, "an answer")
        assert newest(stream)[b"user"].model_version == 1
        log = worker.log()
        assert worker.stop() == 0
    with running_worker(stream) as again:
        again.wait_until_ready()
        assert again.metric("lrurec_model_version") == 1
        assert again.metric("lrurec_model_rejected_version") == 4

    assert "expected a regular file" in log
    assert "expected weights that give finite scores" in log
    assert "expected rows of at most 880000 bytes" in log


def test_a_release_is_announced_by_the_path_that_was_given(
    settings: Settings, tmp_path: Path
) -> None:
    """Workers see the folder under the same path, be it a link there to another place or none."""
    create_topics(settings)
    random_release(tmp_path / "disk", ITEMS)
    (tmp_path / "releases").symlink_to(tmp_path / "disk")

    announcement = announce(settings, read_release(tmp_path / "releases" / "1"))

    assert announcement.location == str(tmp_path / "releases" / "1")


def test_a_worker_without_events_goes_over_as_well(worker: WorkerProcess) -> None:
    """Its figures and its log name the release that will answer the next event."""
    folder = worker.settings.trainer.releases_dir

    announce(worker.settings, random_release(folder, ITEMS, version=2, hidden_size=12))

    wait_until(lambda: worker.metric("lrurec_model_version") == 2, "release 2")
    assert worker.log().count(" release 2 serves\n") == 1


def test_an_older_release_is_gone_back_to_by_announcing_it(worker: WorkerProcess) -> None:
    """`lrurec announce` makes a running worker serve what is there already."""
    settings = worker.settings
    folder = settings.trainer.releases_dir
    announce(settings, random_release(folder, ITEMS, version=2))
    wait_until(lambda: worker.metric('lrurec_model_swaps_total{result="loaded"}') == 2, "a swap")

    assert main(["announce", str(folder / "1"), *settings_flags(settings)]) == 0

    wait_until(lambda: worker.metric('lrurec_model_swaps_total{result="loaded"}') == 3, "a swap")
    produce(settings, [(1, event("user-1", ITEMS[1]))])
    wait_until(lambda: newest(settings), "an answer")
    assert newest(settings)[b"user-1"].model_version == 1


def test_a_number_is_announced_for_one_release_alone(
    worker: WorkerProcess, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Lists name a release by its version; another of that number would be taken for it."""
    other = random_release(tmp_path, ITEMS[:4])

    assert main(["announce", str(other.path), *settings_flags(worker.settings)]) == 1

    said = capsys.readouterr().err
    assert f"release 1 at {other.path}: another one was announced by that number, at " in said


def test_a_second_worker_on_the_same_folder_is_refused_in_one_line(worker: WorkerProcess) -> None:
    """The first one goes on; the second names the process that holds the folder."""
    other = dataclasses.replace(worker.settings, metrics=MetricsSettings(port=0))

    with running_worker(other) as second:
        assert second.wait() != 0

    assert f"is in use by process {worker.process.pid}" in worker.log()
    assert worker.process.poll() is None


def test_a_taken_port_is_refused_in_one_line(stream: Settings) -> None:
    """A worker that could not be watched does not start."""
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
        taken = dataclasses.replace(stream, metrics=MetricsSettings(port=port))
        with running_worker(taken) as worker:
            assert worker.wait() != 0

    assert f"another program listens on 127.0.0.1:{port}" in worker.log()
