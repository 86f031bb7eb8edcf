"""A stream without Kafka: topics as lists, and the real processor that reads and writes them."""

from collections.abc import Callable, Iterable, Iterator, Mapping
from contextlib import suppress
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import numpy.typing as npt
import torch
from prometheus_client import CollectorRegistry

from models.release import Release
from pipeline.cluster.topics import changelog_name
from pipeline.engine.chunks import Chunk
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.verification.report import Kind, VerifyReport
from pipeline.verification.verify import verify
from pipeline.worker.catalogue import Catalogue
from pipeline.worker.recommend import RecommendationProcessor
from pipeline.worker.releases import Announcement
from pipeline.worker.served_model import ModelHolder, prepare
from pipeline.worker.users import Users
from state.memory import MemoryStore
from state.row import layout_of
from tests.releases import random_release

ITEMS = [f"item-{i}" for i in range(8)]
K = 3
RING = 4
PARTITIONS = (0, 1)


@dataclass(frozen=True)
class ListedRecord:
    """A record of a topic that is a list."""

    topic: str
    partition: int
    offset: int
    timestamp: int
    key: bytes | None
    value: bytes | None
    headers: tuple[tuple[str, bytes], ...] = ()


@dataclass
class ListedTopics:
    """Topics as lists; an offset whose record is None holds none.

    Without `now_ms` records have times of their own, and recommendations those of the real clock.
    """

    records: dict[tuple[str, int], list[ListedRecord | None]] = field(default_factory=dict)
    first: dict[tuple[str, int], int] = field(default_factory=dict)
    committed: dict[int, int] = field(default_factory=dict)
    compacted: set[str] = field(default_factory=set)
    now_ms: int | None = None
    on_read: Callable[[str], None] = lambda topic: None
    on_record: Callable[[ListedRecord], None] = lambda record: None  # after it was read

    def append(
        self,
        topic: str,
        partition: int,
        key: bytes | None,
        value: bytes | None,
        headers: Iterable[tuple[str, bytes]] = (),
        timestamp: int | None = None,
    ) -> None:
        log = self.records.setdefault((topic, partition), [])
        if timestamp is None:
            timestamp = 5000 + len(log) if self.now_ms is None else self.now_ms
        log.append(ListedRecord(topic, partition, len(log), timestamp, key, value, tuple(headers)))

    def trim(self, topic: str, partition: int, first: int) -> None:
        """Remove the records before an offset, as retention does."""
        self.first[topic, partition] = first

    def remove(self, topic: str, partition: int, offset: int) -> None:
        """Remove one record, as compaction does, or put a marker of a transaction in its place."""
        self.records[topic, partition][offset] = None

    # --- what `verify` asks for

    def committed_offsets(self) -> Mapping[int, int]:
        return self.committed

    def first_offsets(self, topic: str) -> Mapping[int, int]:
        return {p: self.first.get((topic, p), 0) for p in PARTITIONS}

    def end_offsets(self, topic: str) -> Mapping[int, int]:
        return {p: len(self.records.get((topic, p), ())) for p in PARTITIONS}

    def is_compacted(self, topic: str) -> bool:
        return topic in self.compacted

    def read(
        self,
        topic: str,
        *,
        start: Mapping[int, int] | None = None,
        end: Mapping[int, int] | None = None,
    ) -> Iterator[ListedRecord]:
        self.on_read(topic)
        for partition in PARTITIONS:
            stop = (end or {}).get(partition)
            log = self.records.get((topic, partition), [])[:stop]
            for offset, record in enumerate(log):
                first = max(self.first.get((topic, partition), 0), (start or {}).get(partition, 0))
                if record is not None and offset >= first:
                    yield record
                    self.on_record(record)


class StreamWorld:
    """A processor on listed topics, to be stopped at will, and its topics to be falsified."""

    def __init__(self, folder: Path, settings: Settings, releases: Iterable[Release] = ()) -> None:
        self.folder = folder
        self.settings = settings
        self.names = settings.topics
        self.topics = ListedTopics(committed=dict.fromkeys(PARTITIONS, 0))
        self.changelog = changelog_name(settings.worker.app_id)
        self.store = MemoryStore()
        for partition in PARTITIONS:
            self.store.open(partition)
        self.holder = ModelHolder()
        self.catalogue = Catalogue()
        self.position = dict.fromkeys(PARTITIONS, 0)
        for release in releases:
            self.announce(release)
        self.holder.take_next()
        self.start()

    def start(self) -> None:
        """Begin with what was settled, from the committed offsets."""
        self.metrics = Metrics(CollectorRegistry())
        self.users, self.heard = Users(), dict.fromkeys(PARTITIONS, 0)
        self.processor = RecommendationProcessor(
            self.settings,
            self.store,
            self.holder,
            self.catalogue,
            self.users,
            self.metrics,
            torch.device("cpu"),
        )
        self.hear()
        self.position = dict(self.topics.committed)

    def announce(self, release: Release) -> None:
        """Announce a release and make it the next one to serve."""
        announcement = Announcement(
            version=release.version,
            location=str(release.path),
            manifest_sha256=release.manifest_sha256,
            created=release.created,
        )
        key, value = str(release.version).encode(), msgspec.json.encode(announcement)
        self.topics.append(self.names.models, 0, key, value)
        ring = self.settings.recommend.ring
        self.holder.offer(prepare(release, device="cpu", top_k=self.top_k, ring=ring))

    @property
    def top_k(self) -> int:
        return self.settings.recommend.top_k

    def click(self, user: str, item: str, *, partition: int = 0, **more: Any) -> None:
        """Append an event to the interactions."""
        log = self.topics.records.setdefault((self.names.interactions, partition), [])
        now_ms = self.topics.now_ms
        time_ms = 1000 + len(log) if now_ms is None else now_ms
        event = {"user_id": user, "item_id": item, "timestamp_ms": time_ms, **more}
        self.topics.append(
            self.names.interactions, partition, user.encode(), msgspec.json.encode(event)
        )

    def click_all(self, user: str, items: str, *, partition: int = 0) -> None:
        """Append events of the items with these digits."""
        for digit in items:
            self.click(user, f"item-{digit}", partition=partition)

    def describe(self, item: str, value: bytes | None, timestamp: int | None = None) -> None:
        """Append a record of the catalogue, which the processor takes at once."""
        self.topics.append(self.names.items, 0, item.encode(), value, timestamp=timestamp)
        self.catalogue.apply(item.encode(), value)

    def tell(
        self,
        user: str,
        command: Mapping[str, Any] | None,
        *,
        partition: int = 0,
        timestamp: int | None = None,
        heard: bool = True,
    ) -> None:
        """Append a record about a user, which the processor takes at once or not."""
        value = None if command is None else msgspec.json.encode(command)
        self.topics.append(self.names.users, partition, user.encode(), value, timestamp=timestamp)
        if heard:
            self.hear()

    def hear(self) -> None:
        """Have the processor take all of the users topic that it has not heard."""
        for partition in PARTITIONS:
            records = self.topics.records.get((self.names.users, partition), [])
            for record in records[self.heard[partition] :]:
                with suppress(ValueError, RecursionError):
                    if record is not None:
                        self.users.hear(record)
            self.heard[partition] = len(records)
        self.processor.refresh(PARTITIONS)

    def junk(
        self, value: bytes | None, *, partition: int = 0, headers: Iterable[tuple[str, bytes]] = ()
    ) -> None:
        """Append a record that is no event."""
        self.topics.append(self.names.interactions, partition, b"junk", value, headers)

    def process(self, partition: int, most: int = 1000) -> None:
        """Answer the next records of a partition; nothing is durable by that."""
        start = self.position[partition]
        log = self.topics.records.get((self.names.interactions, partition), [])[: start + most]
        records = [record for record in log[start:] if record is not None]
        self.position[partition] = max(start, len(log))
        if not records:
            return
        for result in self.processor.process([(partition, Chunk(records, start, len(log)))]):
            for key, value in result.outputs:
                self.topics.append(self.names.recommendations, partition, key, self._dated(value))
            for letter in result.dead_letters:
                headers = [*letter.headers, *letter.about]
                self.topics.append(
                    self.names.dead_letters, partition, letter.key, letter.value, headers
                )

    def _dated(self, value: bytes | None) -> bytes | None:
        """A recommendation as made now by the topics' clock."""
        if value is None or self.topics.now_ms is None:
            return value
        output = msgspec.json.decode(value)
        return msgspec.json.encode({**output, "emitted_at_ms": self.topics.now_ms})

    def settle(self, *, commit: bool = True) -> None:
        """Take a checkpoint of every partition."""
        for partition in PARTITIONS:
            snapshot = self.processor.snapshot(partition)
            for key, row in snapshot.rows:
                self.topics.append(self.changelog, partition, key, row)
                if row is None:
                    self.topics.append(self.names.recommendations, partition, key, None)
            self.store.write(partition, snapshot.rows, None)
            self.processor.settled(partition, snapshot)
        if commit:
            self.topics.committed = dict(self.position)

    def run(self, batch: int = 2) -> None:
        """Answer everything in small batches and settle it."""
        for partition in PARTITIONS:
            end = len(self.topics.records.get((self.names.interactions, partition), []))
            while self.position[partition] < end:
                self.process(partition, batch)
        self.settle()

    def verify(self, sample: int | None = None) -> VerifyReport:
        return verify(self.settings, topics=self.topics, now_ms=self.topics.now_ms, sample=sample)

    # --- falsifying

    def row(self, user: str, partition: int = 0) -> bytes:
        """The newest row of a user."""
        rows = [
            record.value
            for record in self.topics.records[self.changelog, partition]
            if record is not None and record.key == user.encode()
        ]
        assert rows
        assert rows[-1] is not None
        return rows[-1]

    def forge_row(
        self,
        user: str,
        *,
        at: int = 0,
        hidden: npt.NDArray[np.complex64] | None = None,
        **facts: Any,
    ) -> None:
        """Append a row that is the user's newest one with other facts."""
        row = self.row(user, at)
        layout = layout_of(row)
        assert layout is not None
        decoded = layout.decode([row])
        for name, value in facts.items():
            decoded.heads[name][0] = value
        state = decoded.hidden if hidden is None else hidden[None]
        (forged,) = layout.encode(decoded.heads, state)
        self.topics.append(self.changelog, at, user.encode(), forged)

    def head(self, user: str, partition: int = 0) -> Any:
        """Head of the user's newest row."""
        row = self.row(user, partition)
        layout = layout_of(row)
        assert layout is not None
        return layout.decode([row]).heads[0]

    def hidden(self, user: str, partition: int = 0) -> npt.NDArray[np.complex64]:
        """Hidden state of the user's newest row."""
        row = self.row(user, partition)
        layout = layout_of(row)
        assert layout is not None
        state: npt.NDArray[np.complex64] = layout.decode([row]).hidden[0]
        return state

    def forge_output(self, falsify: Callable[[dict[str, Any]], object], partition: int = 0) -> None:
        """Replace the newest recommendation of a partition by a false one."""
        log = self.topics.records[self.names.recommendations, partition]
        record = log[-1]
        assert record is not None
        assert record.value is not None
        output = msgspec.json.decode(record.value)
        falsify(output)
        log[-1] = replace(record, value=msgspec.json.encode(output))


def small_release(folder: Path, version: int = 1, *, n_items: int = 8, hidden: int = 4) -> Release:
    """A release with random weights that differ by its version."""
    return random_release(
        folder, ITEMS[:n_items], version=version, hidden_size=hidden, max_length=RING
    )


def three_releases(folder: Path, *, fewer_items: int) -> list[Release]:
    """Two releases of one shape, and one of another with so few items."""
    return [
        small_release(folder, 1),
        small_release(folder, 2),
        small_release(folder, 3, n_items=fewer_items, hidden=6),
    ]


def wrong(report: VerifyReport) -> dict[Kind, int]:
    """How many things of each kind are wrong."""
    counts = {
        Kind.MISSING: report.offsets.missing,
        Kind.ROW: report.rows_wrong,
        Kind.STATE: report.states_different,
        Kind.LETTER: report.dead_letters_wrong,
        Kind.NO_OUTPUT: report.outputs.missing,
        Kind.OUTPUT: report.outputs.wrong,
        Kind.SHORT: report.outputs.short,
        Kind.STALE: report.stale,
    }
    found = {kind: count for kind, count in counts.items() if count}
    assert report.holds == (not found)
    assert {finding.kind for finding in report.findings} == found.keys()
    return found
