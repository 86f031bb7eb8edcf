"""What `lrurec users` does: finds what holds of a user, changes a part of it, and sends the whole.

A record goes to every partition: which one the shop's own producers would choose is not known here,
and an older record that compaction keeps on another partition must not outlive it.
"""

import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace

import msgspec
from kafka import KafkaProducer
from kafka.errors import KafkaError

from pipeline.cluster.clients import kafka_python_options, wait_for_kafka
from pipeline.cluster.records import end_offsets
from pipeline.cluster.rights import in_words
from pipeline.errors import BrokerUnavailable, SettingsInvalid
from pipeline.events import EPOCH, MAX_TIMESTAMP_MS, MILLISECOND, MIN_AUTO_MS, parse_iso_ms
from pipeline.printable import printable
from pipeline.settings import Settings
from pipeline.user_commands import (
    MAX_BLOCKED_ITEMS,
    NOTHING,
    UserCommand,
    newest_commands,
    read_user_commands,
)

CONFIRMATION_DEADLINE_S = 30


@dataclass(frozen=True, kw_only=True)
class Position:
    """Where a record stands, and its timestamp."""

    partition: int
    offset: int
    timestamp_ms: int


@dataclass(frozen=True, kw_only=True)
class UserFacts:
    """What holds of a user.

    Attributes:
        user: The user's id.
        command: What holds.
        records: What says so: the one record that was read, none where the topic does not name the
            user, or those that were sent, one for each partition.
    """

    user: str
    command: UserCommand
    records: Sequence[Position]


def parse_time_ms(text: str, now_ms: int) -> int:
    """Return a time as milliseconds since 1970, from ISO 8601 (without a zone: UTC) or from these.

    What lies ahead is refused: what is once forgotten cannot be remembered again.

    Raises:
        SettingsInvalid: It is another text, later than now, or of before March 1973 and not the
            beginning of 1970, by which nothing is forgotten: a record with it would be void.
    """
    expected = f"a time must be ISO 8601 or milliseconds since 1970, got {text!r}"
    if text.isascii() and text.isdigit():
        time_ms = int(text) if len(text) < 20 else MAX_TIMESTAMP_MS
        if time_ms < MIN_AUTO_MS:  # seconds, taken for milliseconds, would forget nothing
            raise SettingsInvalid(expected)
    else:
        try:
            time_ms = parse_iso_ms(text)
        except ValueError:
            raise SettingsInvalid(expected) from None
    if time_ms != 0 and not MIN_AUTO_MS <= time_ms <= now_ms:
        msg = f"a time must be 1970-01-01 or between March 1973 and now, got {text!r}"
        raise SettingsInvalid(msg)
    return time_ms


def format_time(time_ms: int) -> str:
    """Return milliseconds since 1970 as ISO 8601."""
    try:
        return (EPOCH + time_ms * MILLISECOND).isoformat(timespec="milliseconds")
    except OverflowError:  # a record's timestamp can be anything
        return f"{time_ms} ms"


def check_id(name: str, text: str, max_bytes: int) -> None:
    """Refuse what can be the id of no user and no item.

    Raises:
        SettingsInvalid: It is empty, no Unicode or too long.
    """
    try:
        size = len(text.encode())
    except UnicodeEncodeError:
        msg = f"{name} must be an id in UTF-8, got {printable(text)!r}"
        raise SettingsInvalid(msg) from None
    if not 0 < size <= max_bytes:
        msg = f"{name} must be an id of 1 to {max_bytes} bytes (fields.max_id_bytes), got {size}"
        raise SettingsInvalid(msg)


def read_user(settings: Settings, user: str) -> UserFacts:
    """Return what holds of a user by the users topic as it is now.

    Raises:
        BrokerUnavailable: No answer.
        TopicMismatch: There is no users topic.
    """
    key = user.encode()
    of_user = (one for one in read_user_commands(settings) if one[0].key == key)
    found = newest_commands(of_user).get(key)
    if found is None:
        return UserFacts(user=user, command=NOTHING, records=())
    record, command = found
    position = Position(
        partition=record.partition, offset=record.offset, timestamp_ms=record.timestamp
    )
    return UserFacts(user=user, command=command, records=(position,))


def forget(settings: Settings, user: str, before_ms: int) -> UserFacts:
    """Forget a user's events from before a time; one before that told last lifts nothing.

    Raises:
        BrokerUnavailable: Not every partition has confirmed it.
        TopicMismatch: There is no users topic.
    """

    def change(command: UserCommand) -> UserCommand:
        return msgspec.structs.replace(
            command, forget_before_ms=max(before_ms, command.forget_before_ms)
        )

    return _change(settings, user, change)


def block(settings: Settings, user: str, items: Sequence[str]) -> UserFacts:
    """Block items for a user, besides those that are blocked already.

    Raises:
        BrokerUnavailable: Not every partition has confirmed it.
        SettingsInvalid: They would be too many.
        TopicMismatch: There is no users topic.
    """

    def change(command: UserCommand) -> UserCommand:
        blocked = tuple(dict.fromkeys([*command.blocked_ids, *items]))
        if len(blocked) > MAX_BLOCKED_ITEMS:
            msg = (
                f"a user can have {MAX_BLOCKED_ITEMS} blocked items, this would make {len(blocked)}"
            )
            raise SettingsInvalid(msg)
        return msgspec.structs.replace(command, blocked_items=blocked)

    return _change(settings, user, change)


def unblock(settings: Settings, user: str, items: Sequence[str]) -> UserFacts:
    """Lift the block of items for a user; one that is not blocked is fine.

    Raises:
        BrokerUnavailable: Not every partition has confirmed it.
        TopicMismatch: There is no users topic.
    """

    def change(command: UserCommand) -> UserCommand:
        kept = tuple(item for item in command.blocked_ids if item not in items)
        return msgspec.structs.replace(command, blocked_items=kept)

    return _change(settings, user, change)


def _change(
    settings: Settings, user: str, change: Callable[[UserCommand], UserCommand]
) -> UserFacts:
    """Send what holds of a user after a change, also where it changes nothing.

    So what an earlier call could not send to every partition gets there by the next.
    """
    before = read_user(settings, user)
    # It rules by its time, whatever the clock that the record before was given its time by.
    now_ms = time.time_ns() // 1_000_000
    timestamp_ms = max([now_ms, *(record.timestamp_ms + 1 for record in before.records)])
    command = change(before.command)
    sent = _send(settings, user, command, timestamp_ms)
    return replace(before, command=command, records=sent)


def _send(settings: Settings, user: str, command: UserCommand, timestamp_ms: int) -> list[Position]:
    topic = settings.topics.users
    partitions = end_offsets(settings.kafka, topic)
    kafka = wait_for_kafka(settings.kafka)
    try:
        producer = KafkaProducer(**kafka_python_options(kafka), acks="all")
        try:
            futures = [
                producer.send(
                    topic,
                    key=user.encode(),
                    value=msgspec.json.encode(command),
                    partition=partition,
                    timestamp_ms=timestamp_ms,
                )
                for partition in partitions
            ]
            confirmed = [future.get(CONFIRMATION_DEADLINE_S) for future in futures]
        finally:
            producer.close(timeout=5)
    except KafkaError as error:
        msg = f"{topic}: not every partition has confirmed it, so call it again: {in_words(error)}"
        raise BrokerUnavailable(msg) from error
    return [
        Position(partition=one.partition, offset=one.offset, timestamp_ms=one.timestamp)
        for one in confirmed
    ]
