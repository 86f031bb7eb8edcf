"""The users topic: what holds of a user beside the user's events, as the last record says.

A record is the whole of what holds: the next one of the same user replaces it, a null value lifts
it. What follows from a record depends on it and on an event alone, never on when either was read,
so the worker, the trainer and `lrurec verify` agree on every event for ever.
"""

import logging
from collections.abc import Iterable, Iterator
from typing import Annotated

import msgspec

from pipeline.cluster.records import Record, place_of, read_partitions
from pipeline.events import MAX_TIMESTAMP_MS, MIN_AUTO_MS
from pipeline.settings import Settings

logger = logging.getLogger(__name__)

MAX_BLOCKED_ITEMS = 1000
"""Of one user: each of them costs time at every list of the user."""

_Milliseconds = Annotated[int, msgspec.Meta(ge=0, lt=MAX_TIMESTAMP_MS)]
_Items = Annotated[tuple[str | int, ...], msgspec.Meta(max_length=MAX_BLOCKED_ITEMS)]


class UserCommand(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """The value of a record on the users topic; its key is the user id in UTF-8.

    A field that is not known is an error: a misspelt one would leave a user unforgotten.

    Attributes:
        forget_before_ms: Events from before this time never happened, milliseconds since 1970; 0:
            none is forgotten. No other one of before March 1973: it would be one in seconds.
        blocked_items: Ids of items that are not to be recommended to the user.
    """

    forget_before_ms: _Milliseconds = 0
    blocked_items: _Items = ()

    @property
    def blocked_ids(self) -> list[str]:
        """The blocked items, each as events and releases name it."""
        return [str(item) for item in self.blocked_items]


NOTHING = UserCommand()
"""What holds of a user whom no record names."""

_decode = msgspec.json.Decoder(UserCommand).decode


def decode_user_command(key: bytes | None, value: bytes | None) -> UserCommand:
    """Return what a record of the users topic says; a null value says nothing.

    Raises:
        ValueError: The key is no UTF-8 text or the value is no command.
        RecursionError: The value is nested too deeply.
    """
    if not key:
        msg = "users record: expected the user id as key, got none"
        raise ValueError(msg)
    key.decode()
    if value is None:
        return NOTHING
    command = _decode(value)
    if 0 < command.forget_before_ms < MIN_AUTO_MS:
        msg = f"forget_before_ms: expected 0 or at least {MIN_AUTO_MS}, got less: seconds, perhaps"
        raise ValueError(msg)
    for item in command.blocked_ids:
        item.encode()  # a lone surrogate is no id
    return command


def is_forgotten(forget_before_ms: int, timestamp_ms: int, record_ms: int) -> bool:
    """Tell whether an event is from before the time up to which its user is forgotten.

    Of both its times the earlier one counts: clocks of clients run ahead, and what was recorded
    before has happened before.

    Args:
        forget_before_ms: As commanded; 0 for none.
        timestamp_ms: When it happened.
        record_ms: The record's own timestamp; negative where it has none.
    """
    return timestamp_ms < forget_before_ms or 0 <= record_ms < forget_before_ms


def read_user_commands(settings: Settings) -> Iterator[tuple[Record, UserCommand]]:
    """Yield (record, command) of the users topic to its present end; what is none is logged.

    Raises:
        BrokerUnavailable: No answer.
        TopicMismatch: There is no such topic.
    """
    for record in read_partitions(settings.kafka, settings.topics.users):
        try:
            yield record, decode_user_command(record.key, record.value)
        except (ValueError, RecursionError) as error:
            where = place_of(record)
            logger.error("%s: no command of a user, it changes nothing: %s", where, error)


def newest_commands(
    commands: Iterable[tuple[Record, UserCommand]],
) -> dict[bytes, tuple[Record, UserCommand]]:
    """Return what holds of each user that has a record, by key, with the record that says so.

    A user can have records on several partitions: the one with the newest timestamp rules, of equal
    ones that which comes later here. But what is forgotten by any of them stays so.

    Args:
        commands: All of them, as `read_user_commands` yields them.
    """
    newest: dict[bytes, tuple[Record, UserCommand]] = {}
    for record, command in commands:
        key = record.key
        assert key  # else it were no command
        earlier, earlier_command = newest.get(key, (record, command))
        before_ms = max(command.forget_before_ms, earlier_command.forget_before_ms)
        if record.timestamp < earlier.timestamp:
            record, command = earlier, earlier_command
        newest[key] = record, msgspec.structs.replace(command, forget_before_ms=before_ms)
    return newest
