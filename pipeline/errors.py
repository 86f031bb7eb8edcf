"""What can go wrong in the stream, and what the program does about it.

PipelineError
├── EventInvalid          a record that cannot be used         -> dead-letter topic, counted
├── SettingsInvalid       a setting breaks its rule            -> exit code 2
│   └── FolderUnusable    releases cannot be written           -> the same; trainer at work waits
├── DataFileInvalid       a data file is not what it should be -> exit code 1
├── TopicMismatch         a topic is not as the settings say   -> exit code 1
├── BrokerUnavailable     no answer from Kafka                 -> retried for a while, then 1
│   └── BrokerRefuses     Kafka would answer the same again    -> exit code 1, trainers too
├── PortTaken             a port to listen on is in use        -> exit code 1
├── NotEnoughEvents       nothing to train or to judge by      -> exit code 1; trainer waits
├── TrainingLocked        another training runs in the folder  -> exit code 1; trainer waits
├── DemoFailed            the demo lost what it stands on      -> exit code 1
└── SwapRejected          a release cannot be served           -> old model serves on, counted

`models.errors.ModelError` and `state.errors.StateError` are this tree's siblings. They and every
`PipelineError` that reach a command's outermost frame become one line on stderr; any other
exception is a bug and ends the process with its traceback.
"""

from enum import StrEnum, unique


class PipelineError(Exception):
    """Something in the stream failed in a way that an operator can act on."""


@unique
class DeadReason(StrEnum):
    """Why a record went to the dead-letter topic: a closed set, fit for a metric label."""

    NULL_VALUE = "null_value"
    """The record has no value."""

    NOT_JSON = "not_json"
    """The value is not JSON in UTF-8, or is nested too deeply to be read."""

    NOT_OBJECT = "not_object"
    """The value is JSON, but not an object."""

    MISSING_USER = "missing_user"
    """No user id: the field is absent or null."""

    MISSING_ITEM = "missing_item"
    """No item id: the field is absent or null."""

    BAD_USER = "bad_user"
    """The user id is empty, not text or integer, or cannot be written as UTF-8."""

    BAD_ITEM = "bad_item"
    """The item id is empty, not text or integer, or cannot be written as UTF-8."""

    ID_TOO_LONG = "id_too_long"
    """An id has more UTF-8 bytes than `fields.max_id_bytes`."""

    BAD_TIMESTAMP = "bad_timestamp"
    """The timestamp is not of the form that the setting says, negative, or beyond the year 2100."""

    FUTURE_TIMESTAMP = "future_timestamp"
    """The timestamp is later than the record's own by more than `fields.max_future_s`."""

    BAD_FIELD = "bad_field"
    """The event type or event id is of the wrong type, or a path leads through a non-object."""


class EventInvalid(PipelineError):
    """A record is no usable event: it goes to the dead-letter topic with reason and message."""

    def __init__(self, reason: DeadReason, message: str) -> None:
        super().__init__(message)
        self.reason = reason


class SettingsInvalid(PipelineError):
    """A setting breaks its rule. Action: change the flag or the variable that the message names."""


class FolderUnusable(SettingsInvalid):
    """The folder of releases cannot be written. Action: see to its rights, or its share."""


class DataFileInvalid(PipelineError):
    """A data file is not of a known form. Action: correct the line that the message names."""


class TopicMismatch(PipelineError):
    """A topic is missing, unlike what the settings say, or not open to this program.

    Action: what the message names. The partition count of the interactions topic must not change
    while states exist.
    """


class BrokerUnavailable(PipelineError):
    """Kafka does not answer. Action: `lrurec broker start` or `--kafka.bootstrap-servers`."""


class BrokerRefuses(BrokerUnavailable):
    """Kafka refuses the password, mechanism or certificate. Action: see to `kafka.*`, or to it."""


class PortTaken(PipelineError):
    """Another program listens on the port. Action: choose another port or stop that program."""


class NotEnoughEvents(PipelineError):
    """There is too little to train on. Action: let events come in, or see why none can be used."""


class TrainingLocked(PipelineError):
    """Another training runs in the same folder of releases. Action: wait, or end that process."""


class DemoFailed(PipelineError):
    """A process of the demo ended, or its folder cannot be used. Action: read the log it names."""


class SwapRejected(PipelineError):
    """A release failed its digest, format or gate; the model that served before serves on."""
