"""Bad and odd records through a real worker, judged by what it writes to its topics.

One worker serves all tests of this module; each has users and partitions of its own.
"""

import dataclasses
import time
from collections.abc import Iterator
from pathlib import Path

import numpy as np
import pytest
import torch

from models.release import Release, load_serving
from pipeline.cluster.records import Record, end_offsets, read_partitions
from pipeline.cluster.topics import create_topics
from pipeline.errors import DeadReason
from pipeline.settings import FieldSettings, MetricsSettings, Settings
from pipeline.verification.verify import verify
from pipeline.worker.releases import announce
from tests.bad_records import (
    BAD,
    ODD_ITEMS,
    ODD_USERS,
    Raw,
    click,
    dead_letters,
    free_port,
    history_lengths,
    newest,
    recommendations,
    send_raw,
)
from tests.kafka import remove_traces, send, unique_settings, wait_until
from tests.releases import random_release
from tests.worker_process import WorkerProcess, running_worker

LONG_ITEMS = [f"{i}" + "\x01" * 255 for i in range(6)]  # 1.5 KB each in JSON
ITEMS = [*ODD_ITEMS, "plain-1", "plain-2", "plain-3", *LONG_ITEMS]
LATER_ITEMS = [*ITEMS, "unheard-of"]
# A list that stands for both a row of single steps and one scan may differ in the last bits.
SCORE_TOLERANCE = 1e-4


@dataclasses.dataclass
class World:
    """A worker that runs, and the release that it serves."""

    settings: Settings
    worker: WorkerProcess
    release: Release

    def send(self, records: list[Raw], compression: str | None = None) -> list[int]:
        kafka, topics = self.settings.kafka, self.settings.topics
        return send_raw(
            kafka.bootstrap_servers, topics.interactions, records, compression=compression
        )

    def wait_for(self, lengths: dict[str, int], deadline_s: float = 30.0) -> None:
        """Wait until the newest answers to these users reflect so many events."""
        wait_until(
            lambda: lengths.items() <= history_lengths(self.settings).items(),
            f"answers that reflect {lengths}",
            deadline_s,
        )
        assert self.worker.process.poll() is None

    def scores(self, history: list[str]) -> dict[str, float]:
        """The score of every item after this history, by one scan of the release."""
        serving = load_serving(self.release, "cpu")
        index = [self.release.vocabulary.index_of(item) for item in history]
        items = torch.tensor([i for i in index if i])
        with torch.inference_mode():
            _, outputs = serving.advance(serving.init_state(1), items, torch.tensor([len(items)]))
            scores = serving.scores(outputs[-1:])[0]
        return dict(zip(self.release.vocabulary.item_ids, scores[1:].tolist(), strict=True))

    def assert_answer(self, user: str, history: list[str]) -> None:
        """The user's newest list is that of this history."""
        scores = self.scores(history)
        made = newest(self.settings)[user.encode()]
        best = sorted(scores.values(), reverse=True)[:10]
        assert made.model_version == self.release.version
        np.testing.assert_allclose([i.score for i in made.items], best, atol=SCORE_TOLERANCE)
        for item in made.items:
            assert abs(item.score - scores[item.item_id]) < SCORE_TOLERANCE


@pytest.fixture(scope="module")
def world(kafka: str, tmp_path_factory: pytest.TempPathFactory) -> Iterator[World]:
    """A worker on topics that are still empty."""
    folder: Path = tmp_path_factory.mktemp("records")
    settings = dataclasses.replace(
        unique_settings(kafka, folder),
        metrics=MetricsSettings(port=free_port()),
        fields=FieldSettings(accepted_event_types=("view", "cart")),
    )
    create_topics(settings)
    release = random_release(settings.trainer.releases_dir, ITEMS)
    announce(settings, release)
    with running_worker(settings) as worker:
        worker.wait_until_ready()
        yield World(settings, worker, release)
    remove_traces(settings)


def test_empty_topics_are_waited_on(world: World) -> None:
    """A worker on nothing is ready, lags behind nothing and says nothing."""
    assert end_offsets(world.settings.kafka, world.settings.topics.interactions) == dict.fromkeys(
        range(4), 0
    )
    assert world.worker.metric("lrurec_partitions_owned") == 4
    assert recommendations(world.settings) == {}


def test_records_that_are_no_events_become_dead_letters(world: World) -> None:
    """Every one keeps key, value and headers, says why it is dead, and loses no neighbour."""
    applied = world.worker.metric('lrurec_events_total{result="applied"}')
    records, expected = [], []
    for i, bad in enumerate(BAD.values()):
        records.append(Raw(value=click(user="beside", item=ITEMS[i % len(ITEMS)])))
        records.append(Raw(key=bad.key, value=bad.value, headers=bad.headers))

    offsets = world.send(records)[1::2]

    world.wait_for({"beside": len(BAD)})
    wait_until(lambda: len(dead_letters(world.settings)) == len(BAD), "a letter each")
    letters = dead_letters(world.settings)
    for (name, bad), offset in zip(BAD.items(), offsets, strict=True):
        (letter,) = letters[0, offset]
        assert (letter.key, letter.value) == (bad.key, bad.value), name
        assert dict(letter.headers)["lrurec-reason"] == bad.reason.value.encode(), name
        assert dict(letter.headers)["lrurec-error"], name
        own = [(n if isinstance(n, str) else r"\xff\xfe", v) for n, v in bad.headers]
        assert list(letter.headers[: len(own)]) == own, name
        expected.append(bad.reason)
    for reason in DeadReason:
        count = world.worker.metric(f'lrurec_dead_events_total{{reason="{reason}"}}')
        assert count == expected.count(reason)
    assert set(expected) == set(DeadReason)
    now_applied = world.worker.metric('lrurec_events_total{result="applied"}')
    assert now_applied - applied == len(BAD)


def test_any_text_may_be_a_user_or_an_item(world: World) -> None:
    """Quotes, controls, emoji and 256 bytes come back as they were, in JSON that can be read."""
    world.send(
        [Raw(key=b"another", value=click(user, item)) for user in ODD_USERS for item in ODD_ITEMS]
    )

    world.wait_for(dict.fromkeys(ODD_USERS, len(ODD_ITEMS)))
    for user in ODD_USERS:
        world.assert_answer(user, ODD_ITEMS)


def test_a_record_without_key_is_answered_under_its_user(world: World) -> None:
    """The user in the value rules, whatever the key says; the answer stays on the partition."""
    world.send([Raw(partition=2, value=click("keyless")), Raw(partition=2, value=click("keyless"))])

    world.wait_for({"keyless": 2})
    (answer,) = {made.event.partition for made in recommendations(world.settings)[b"keyless"]}
    assert answer == 2


def test_events_of_other_types_are_skipped(world: World) -> None:
    """They are no errors: counted, but neither applied nor dead."""
    skipped = world.worker.metric('lrurec_events_total{result="skipped"}')
    dead = world.worker.metric('lrurec_events_total{result="dead"}')

    world.send(
        [
            Raw(value=click("typed", "plain-1", event_type="view")),
            Raw(value=click("typed", "plain-2", event_type="purchase")),
            Raw(value=click("typed", "plain-2", event_type=None)),
            Raw(value=click("typed", "plain-3", event_type="cart")),
        ]
    )

    world.wait_for({"typed": 2})
    world.assert_answer("typed", ["plain-1", "plain-3"])
    assert world.worker.metric('lrurec_events_total{result="skipped"}') == skipped + 2
    assert world.worker.metric('lrurec_events_total{result="dead"}') == dead


def test_a_large_event_is_an_event(world: World) -> None:
    """A megabyte around the ids harms nobody."""
    world.send([Raw(value=click("large", "plain-1", more="x" * 1_000_000))])

    world.wait_for({"large": 1})
    world.assert_answer("large", ["plain-1"])


@pytest.mark.parametrize("compression", ["gzip", "snappy", "lz4", "zstd"])
def test_compressed_records_are_read(world: World, compression: str) -> None:
    """Every compression that Kafka knows, with a dead record in it that inflates beyond a batch."""
    user = f"of {compression}"
    bomb = b'{"user_id":"u","event_type":"view","more":"' + b"x" * 5_000_000 + b'"}'
    send(
        world.settings.kafka.bootstrap_servers,
        world.settings.topics.interactions,
        [(1, b"k", click(user, item)) for item in ITEMS * 20],
        compression=compression,
    )

    (offset,) = world.send([Raw(partition=1, value=bomb)], compression)

    world.wait_for({user: len(ITEMS) * 20})
    world.assert_answer(user, ITEMS * 20)
    wait_until(lambda: (1, offset) in dead_letters(world.settings), "the letter")
    assert dead_letters(world.settings)[1, offset][0].value == bomb


def test_a_repeated_event_counts_once(world: World) -> None:
    """Its id tells, within a micro-batch and later, also after events in between."""
    first = [Raw(value=click("twice", item, event_id=item)) for item in ITEMS[:5]]

    world.send([*first, *first[2:]])
    world.wait_for({"twice": 5})
    world.send([*first, Raw(value=click("twice", ITEMS[5], event_id="x"))])
    world.wait_for({"twice": 6})

    world.assert_answer("twice", ITEMS[:6])


def test_the_log_gives_the_order_of_events_not_their_times(world: World) -> None:
    """What comes late is applied where it stands; it is counted as late."""
    late = world.worker.metric("lrurec_late_events_total")
    times = [9000, 3000, 8000, 1000]
    for item, time_ms in zip(ITEMS, times, strict=False):
        world.send([Raw(value=click("late", item, 10**12 + time_ms))])
        time.sleep(0.05)

    world.wait_for({"late": 4})
    world.assert_answer("late", ITEMS[:4])
    assert newest(world.settings)[b"late"].event.timestamp_ms == 10**12 + 1000
    assert world.worker.metric("lrurec_late_events_total") >= late + 1


def test_a_burst_of_one_user_is_one_scan_a_batch(world: World) -> None:
    """10,000 events of one user at once: exact, answered once a micro-batch, and fast."""
    history = [ITEMS[i * i % len(ITEMS)] for i in range(10_000)]
    started_s = time.monotonic()
    send(
        world.settings.kafka.bootstrap_servers,
        world.settings.topics.interactions,
        [(3, b"k", click("burst", item, 10**12 + i)) for i, item in enumerate(history)],
    )

    world.wait_for({"burst": 10_000})

    took_s = time.monotonic() - started_s
    print(f"10,000 events of one user: {took_s:.1f} s, sending included")
    world.assert_answer("burst", history)
    answers = recommendations(world.settings)[b"burst"]
    assert len(answers) <= 1_000
    assert took_s < 20


def test_an_unknown_item_is_remembered_and_counts_with_the_next_release(world: World) -> None:
    """It moves no state before, is counted, and is part of the history after."""
    unknown = world.worker.metric('lrurec_events_total{result="unknown_item"}')
    world.send([Raw(value=click("ahead", item)) for item in ("unheard-of", "plain-1")])
    world.send([Raw(value=click("only ahead", "unheard-of"))])
    world.wait_for({"ahead": 2, "only ahead": 1})
    world.assert_answer("ahead", ["plain-1"])
    assert newest(world.settings)[b"only ahead"].source == "cold_start"
    assert world.worker.metric('lrurec_events_total{result="unknown_item"}') == unknown + 2

    folder = world.settings.trainer.releases_dir
    world.release = random_release(folder, LATER_ITEMS, version=2)
    announce(world.settings, world.release)
    wait_until(lambda: world.worker.metric('lrurec_model_swaps_total{result="loaded"}') == 2, "2")
    world.send([Raw(value=click(user, "plain-2")) for user in ("ahead", "only ahead")])

    world.wait_for({"ahead": 3, "only ahead": 2})
    world.assert_answer("ahead", ["unheard-of", "plain-1", "plain-2"])
    world.assert_answer("only ahead", ["unheard-of", "plain-2"])
    assert world.worker.metric("lrurec_stale_states_served_total") == 0


def test_answers_larger_than_a_request_are_split(world: World) -> None:
    """Long ids make megabytes of a micro-batch's answers; Kafka takes one or two at once."""
    users = [f"one of many {i}" for i in range(1500)]
    records = [(2, b"k", click(user, LONG_ITEMS[i % 6])) for i, user in enumerate(users)]
    send(
        world.settings.kafka.bootstrap_servers,
        world.settings.topics.interactions,
        [*records, *[(2, b"k", b"no event")] * 1500],
    )

    world.wait_for(dict.fromkeys(users, 1))
    wait_until(
        lambda: sum(r.value == b"no event" for r in all_letters(world)) == 1500, "their letters"
    )


def all_letters(world: World) -> list[Record]:
    return [letter for letters in dead_letters(world.settings).values() for letter in letters]


def test_all_of_it_can_be_read_again(world: World) -> None:
    """As trainer and `lrurec verify` read the topic: no record stops a reader."""
    settings = world.settings
    ends = end_offsets(settings.kafka, settings.topics.interactions)

    assert len(list(read_partitions(settings.kafka, settings.topics.interactions))) == sum(
        ends.values()
    )


def test_nothing_of_this_ended_the_worker(world: World) -> None:
    """It stops in order, with everything acknowledged, and `lrurec verify` finds all as it is."""
    assert world.worker.stop() == 0
    report = verify(world.settings)
    assert report.holds, report.findings
    assert report.offsets.pending == report.offsets.missing == 0
    assert report.offsets.dead == len(BAD) + 4 + 1500
    assert "Traceback" not in world.worker.log()


def test_what_means_nothing_to_a_worker_is_named_by_its_place(settings: Settings) -> None:
    """A line has partition and offset, whenever the record came, and no user; and what follows."""
    settings = dataclasses.replace(settings, metrics=MetricsSettings(port=free_port()))
    topics, address = settings.topics, settings.kafka.bootstrap_servers
    create_topics(settings)
    bad = [
        (topics.users, 2, b"secret", b'{"forget_before_ms":1735689600}'),
        (topics.items, 0, b"sku", b"{"),
        (topics.models, 0, b"1", b"{"),
    ]
    told = [
        ("ERROR", ""),
        ("WARNING", "no item: left out, what held before holds on: "),
        ("ERROR", ""),
    ]

    def send_all() -> None:
        for topic, partition, key, value in bad:
            send(address, topic, [(partition, key, value)])

    def is_told(offset: int) -> bool:
        lines = worker.log().splitlines()
        return all(
            any(
                f" {level} " in line
                and f"{topic} partition {partition} offset {offset}: {said}" in line
                for line in lines
            )
            for (topic, partition, *_), (level, said) in zip(bad, told, strict=True)
        )

    send_all()
    with running_worker(settings) as worker:
        worker.wait_until_ready()
        assert is_told(0)
        send_all()
        wait_until(lambda: is_told(1), "a line each")
    assert "secret" not in worker.log()
