"""Releases on the models topic: announcing one, finding the newest, following what comes.

The topic is compacted and has one partition; its last record names the release to serve, so
announcing an older release again is how one goes back.
"""

import logging
import threading
from collections.abc import Callable, Iterator
from pathlib import Path

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from models.errors import ModelError
from models.manifest import Version
from models.release import Release, read_release
from pipeline.cluster.clients import kafka_python_options, wait_for_kafka
from pipeline.cluster.records import Record, follow_topic, place_of, read_partitions
from pipeline.cluster.rights import in_words
from pipeline.errors import BrokerUnavailable, PipelineError, SwapRejected
from pipeline.settings import Settings

logger = logging.getLogger(__name__)


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """The value of a record on the models topic.

    Attributes:
        version: The release's version, from 1 to 2**31 - 1.
        location: Its folder, as the workers see it.
        manifest_sha256: Digest of its manifest, which holds the digests of everything else.
        created: ISO 8601, UTC.
        metrics: As in the manifest.
    """

    version: Version
    location: str
    manifest_sha256: str
    created: str
    metrics: dict[str, object] = {}


def announce(settings: Settings, release: Release) -> Announcement:
    """Make running and later workers serve this release.

    Raises:
        BrokerUnavailable: The announcement was not confirmed.
    """
    announcement = Announcement(
        version=release.version,
        location=str(release.path.absolute()),  # links stay: elsewhere they may lead elsewhere
        manifest_sha256=release.manifest_sha256,
        created=release.created,
        metrics=dict(release.metrics),
    )
    topic = settings.topics.models
    key = str(release.version).encode()
    kafka = wait_for_kafka(settings.kafka)
    try:
        producer = KafkaProducer(**kafka_python_options(kafka), acks="all")
        try:
            value = msgspec.json.encode(announcement)
            producer.send(topic, key=key, value=value, partition=0).get(30)
        finally:
            producer.close(timeout=5)
    except KafkaError as error:
        msg = f"{topic}: release {release.version} was not announced: {in_words(error)}"
        raise BrokerUnavailable(msg) from error
    return announcement


def require_own_number(settings: Settings, release: Release) -> None:
    """Refuse a release whose version was announced as another: lists name one by its version alone.

    Raises:
        BrokerUnavailable: No answer.
        SwapRejected: Another release was announced by that number.
    """
    for _, other in read_announcements(settings):
        if other.version == release.version and other.manifest_sha256 != release.manifest_sha256:
            msg = (
                f"release {release.version} at {release.path}: another one was announced by that "
                f"number, at {other.location}: make this one anew by a number that is free "
                f"(lrurec import-checkpoint --version)"
            )
            raise SwapRejected(msg)


def read_announcements(settings: Settings) -> Iterator[tuple[int, Announcement]]:
    """Yield (offset, announcement) of the models topic to its present end, oldest first."""
    for record in read_partitions(settings.kafka, settings.topics.models):
        announcement = decode_announcement(record)
        if announcement is not None:
            yield record.offset, announcement


def decode_announcement(record: Record) -> Announcement | None:
    """Return the announcement; None for a tombstone or bytes that are none, which are logged."""
    if record.value is None:
        return None
    try:
        return msgspec.json.decode(record.value, type=Announcement)
    except (ValueError, RecursionError) as error:  # no JSON, no UTF-8, too many brackets
        logger.error("%s: no announcement of a release: %s", place_of(record), error)
        return None


def open_announced(announcement: Announcement) -> Release:
    """Read the announced release and hold it to its digests.

    Raises:
        SwapRejected: It is missing, damaged, of another format or not the one announced.
    """
    try:
        release = read_release(
            Path(announcement.location), expected_manifest_sha256=announcement.manifest_sha256
        )
    except (ModelError, ValueError) as error:  # the latter of a location that can be no path
        msg = f"release {announcement.version} at {announcement.location}: {error}"
        raise SwapRejected(msg) from error
    if release.version != announcement.version:
        msg = (
            f"release at {announcement.location}: version {announcement.version} was announced, "
            f"its manifest says {release.version}"
        )
        raise SwapRejected(msg)
    return release


class TopicFollower:
    """A thread that hands every record of a small topic, from an offset on, to a function.

    Belongs to no consumer group: every worker follows the whole topic, and hears what a read of it
    brings. A broker that is away is waited for.

    Args:
        settings: The cluster.
        topic: Name of the topic.
        handle: Called in the thread with each record; what it raises is logged, and the next one
            comes.
        start: First offset of each partition; from the beginning, or from where `catch_up` came to,
            where none is given.
    """

    def __init__(
        self,
        settings: Settings,
        topic: str,
        handle: Callable[[Record], None],
        start: dict[int, int] | None = None,
    ) -> None:
        self._settings = settings
        self._topic = topic
        self._handle = handle
        self._start = start or {}
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name=f"follow {topic}", daemon=True)

    def catch_up(self) -> None:
        """Hand over what the topic holds now, before this returns.

        Raises:
            BrokerUnavailable: No answer.
            TopicMismatch: There is no such topic.
        """
        for record in read_partitions(self._settings.kafka, self._topic):
            self._take(record)

    def start(self) -> None:
        """Begin to follow."""
        self._thread.start()

    def tell_to_stop(self) -> None:
        """Let the thread end; `stop` waits for it."""
        self._stopping.set()

    def stop(self, timeout_s: float = 2.0) -> None:
        """End the thread."""
        self._stopping.set()
        self._thread.join(timeout_s)

    def _run(self) -> None:
        while not self._stopping.is_set():
            try:
                self._follow()
            except Exception as error:  # a thread that ended would leave the worker deaf for ever
                logger.warning("%s: %r; trying again", self._topic, error)
                self._stopping.wait(1.0)

    def _follow(self) -> None:
        for record in follow_topic(
            self._settings.kafka,
            self._topic,
            start=self._start,
            from_start=True,
            is_over=self._stopping.is_set,
        ):
            self._take(record)

    def _take(self, record: Record) -> None:
        try:
            self._handle(record)
        except (PipelineError, ModelError, ValueError, RecursionError) as error:
            logger.error("%s: %s", place_of(record), error)
        except Exception:  # a bug; the records behind this one are still wanted
            logger.exception("%s: the record could not be applied", place_of(record))
        self._start[record.partition] = record.offset + 1
