"""From a record's bytes to an event: one interaction of one user with one item.

What comes out depends on the record and the `fields` settings alone, never on the time or the
process that decodes it, so the worker, the trainer and `lrurec verify` agree on every record for
ever. The common case is one pass of msgspec into structs that hold only the mapped fields; a record
that this pass does not take is read again, slowly and leniently, to find out why (a lone surrogate
in a field that nobody asked for, say, is no reason to lose an event).
"""

import codecs
import json
import re
from collections.abc import Callable
from datetime import UTC, datetime, timedelta
from operator import attrgetter
from typing import Any, NoReturn

import msgspec

from pipeline.errors import DeadReason, EventInvalid
from pipeline.settings import FieldSettings

MAX_TIMESTAMP_MS = 4_102_444_800_000  # 2100-01-01T00:00:00Z
MIN_AUTO_MS = 10**11  # as milliseconds March 1973, as seconds the year 5138: no doubt which
MIN_AUTO_US = 10**14  # as microseconds March 1973, as milliseconds the year 5138
MAX_DEPTH = 200  # of brackets; far below where a reader runs out of stack, so that all agree
MAX_INTEGER_DIGITS = 4300  # what Python converts by default; no id or time is longer

EPOCH = datetime(1970, 1, 1, tzinfo=UTC)
MILLISECOND = timedelta(milliseconds=1)

_STRING_OR_BRACKET = re.compile(rb'"(?:[^"\\]++|\\.)*+(?:"|\\?\Z)|[\[\]{}]', re.DOTALL)
_Values = tuple[Any, Any, Any, Any, Any]
_MISSING = {"user_id": DeadReason.MISSING_USER, "item_id": DeadReason.MISSING_ITEM}
_BAD = {
    "user_id": DeadReason.BAD_USER,
    "item_id": DeadReason.BAD_ITEM,
    "timestamp": DeadReason.BAD_TIMESTAMP,
    "event_type": DeadReason.BAD_FIELD,
    "event_id": DeadReason.BAD_FIELD,
}
_THROUGH_NON_OBJECT = object()  # what stands at a path that leads through a text or a number


class Event(msgspec.Struct, frozen=True, gc=False):
    """One interaction.

    Attributes:
        user_key: The user id in UTF-8: key of the state row and of the recommendation.
        item_id: The item id; can be written as UTF-8.
        timestamp_ms: When it happened, milliseconds since 1970.
        event_id: The event's own id, by which a repeat is known; None where it has none.
    """

    user_key: bytes
    item_id: str
    timestamp_ms: int
    event_id: str | None


class EventDecoder:
    """Decodes records by the `fields` settings. Keeps nothing between records; thread-safe."""

    def __init__(self, fields: FieldSettings) -> None:
        self._fields = fields
        self._accepted = frozenset(fields.accepted_event_types)
        self._max_id_bytes = fields.max_id_bytes
        self._max_future_ms = round(fields.max_future_s * 1000)
        # In these two units, a number from here on is milliseconds without further thought.
        self._min_ms = {"auto": MIN_AUTO_MS, "ms": 0}.get(fields.timestamp_unit, MAX_TIMESTAMP_MS)
        self._paths = (
            fields.user_id,
            fields.item_id,
            fields.timestamp,
            fields.event_id,
            fields.event_type if self._accepted else None,
        )
        self._parse, self._read = _struct_reader(self._paths)

    def decode(self, value: bytes | None, timestamp_ms: int) -> Event | None:
        """Return the record's event, or None where its event type does not count.

        Args:
            value: The record's value; None for a null one.
            timestamp_ms: The record's own timestamp; negative where it has none.

        Raises:
            EventInvalid: The record is no event; its `reason` says why. Nothing else is raised,
                whatever the bytes.
        """
        if value is None:
            _refuse(DeadReason.NULL_VALUE, "value: expected a JSON object, got null")
        if len(value) > MAX_DEPTH:
            _check_depth(value)
        try:
            user, item, time, event_id, event_type = self._read(self._parse(value))
        except (msgspec.DecodeError, UnicodeDecodeError, AttributeError, RecursionError):
            user, item, time, event_id, event_type = self._read_slowly(value)

        if self._accepted and not self._counts(event_type):
            return None
        user = self._id(user, "user_id")
        item = self._id(item, "item_id")
        if not (type(time) is int and self._min_ms <= time < MAX_TIMESTAMP_MS):
            time = self._time_ms(time, timestamp_ms)
        if 0 <= timestamp_ms < time - self._max_future_ms:
            late_s = (time - timestamp_ms) / 1000
            limit = f"at most {self._fields.max_future_s} s after the record's own timestamp"
            got = f"{late_s:.0f} s ({late_s / 86_400:.1f} days) after it"
            msg = f"{self._fields.timestamp}: expected {limit}, got {got}"
            _refuse(DeadReason.FUTURE_TIMESTAMP, msg)
        if event_id is None or event_id is msgspec.UNSET or event_id == "":
            event_id = None
        else:
            event_id = self._id(event_id, "event_id")
        return Event(user.encode(), item, time, event_id)

    def _id(self, value: Any, field: str) -> str:
        if type(value) is int:
            text = str(value)
        elif type(value) is str:
            text = value
        else:
            self._refuse_value(value, field, "text or an integer")
        if text.isascii():
            size = len(text)
        else:
            try:
                size = len(text.encode())
            except UnicodeEncodeError:
                self._refuse_as(_BAD[field], field, "text that UTF-8 can hold", "a lone surrogate")
        if not 0 < size <= self._max_id_bytes:
            if size == 0:
                self._refuse_as(_BAD[field], field, "an id", "an empty text")
            limit = f"at most {self._max_id_bytes} bytes"
            self._refuse_as(DeadReason.ID_TOO_LONG, field, limit, f"{size} bytes")
        return text

    def _counts(self, event_type: Any) -> bool:
        if type(event_type) is int:
            event_type = str(event_type)
        if type(event_type) is str:
            return event_type in self._accepted
        if event_type is not None and event_type is not msgspec.UNSET:
            self._refuse_value(event_type, "event_type", "text or an integer")
        return False

    def _time_ms(self, value: Any, record_timestamp_ms: int) -> int:
        """Convert a timestamp that is not plain milliseconds, or refuse it."""
        bad, unit = DeadReason.BAD_TIMESTAMP, self._fields.timestamp_unit
        if value is None or value is msgspec.UNSET:
            if not 0 <= record_timestamp_ms < MAX_TIMESTAMP_MS:
                msg = f"no timestamp in the event, and the record's own is {record_timestamp_ms} ms"
                _refuse(bad, msg)
            return record_timestamp_ms
        if type(value) is str and unit in {"auto", "iso"}:
            try:
                time = parse_iso_ms(value)
            except ValueError:
                self._refuse_as(bad, "timestamp", "ISO 8601", "another text")
        elif type(value) in {int, float} and unit != "iso":
            if value > 10**18 or value < 0:  # also keeps infinity out of the arithmetic
                self._refuse_as(bad, "timestamp", "1970 to 2099", "a number outside")
            if unit == "s" or (unit == "auto" and value < MIN_AUTO_MS):
                time = round(value * 1000)
            elif unit == "us" or (unit == "auto" and value >= MIN_AUTO_US):
                time = int(value // 1000)
            else:
                time = round(value)
        else:
            expected = {"iso": "ISO 8601", "auto": "a number or ISO 8601"}.get(unit, "a number")
            self._refuse_value(value, "timestamp", expected)
        if not 0 <= time < MAX_TIMESTAMP_MS:
            self._refuse_as(bad, "timestamp", "1970 to 2099", "a time outside")
        return time

    def _read_slowly(self, value: bytes) -> _Values:
        """Read what msgspec did not take; say what is wrong where nothing can be read at all."""
        try:
            parsed = json.loads(
                value.decode(), parse_int=_parse_integer, parse_constant=_refuse_constant
            )
        except UnicodeDecodeError as error:
            _refuse(DeadReason.NOT_JSON, f"value: expected UTF-8, got other bytes at {error.start}")
        except json.JSONDecodeError as error:
            if value.startswith((codecs.BOM_UTF8, codecs.BOM_UTF16_BE, codecs.BOM_UTF16_LE)):
                _refuse(DeadReason.NOT_JSON, "value: expected JSON, got a byte order mark")
            why = f"{error.msg.removesuffix(' at')}, at character {error.pos}"
            _refuse(DeadReason.NOT_JSON, f"value: is no JSON: {why}")
        except RecursionError:
            _refuse(DeadReason.NOT_JSON, "value: nested too deeply")
        if type(parsed) is not dict:
            got = _kind(parsed)
            _refuse(DeadReason.NOT_OBJECT, f"value: expected a JSON object, got {got}")
        user, item, time, event_id, event_type = (_walk(parsed, path) for path in self._paths)
        return user, item, time, event_id, event_type

    def _refuse_value(self, value: Any, field: str, expected: str) -> NoReturn:
        """Refuse a value for its type."""
        if value is None or value is msgspec.UNSET:
            self._refuse_as(_MISSING[field], field, expected, "nothing")
        if value is _THROUGH_NON_OBJECT:
            got = "a path through something that is no object"
            self._refuse_as(DeadReason.BAD_FIELD, field, expected, got)
        self._refuse_as(_BAD[field], field, expected, _kind(value))

    def _refuse_as(self, reason: DeadReason, field: str, expected: str, got: str) -> NoReturn:
        _refuse(reason, f"{getattr(self._fields, field)}: expected {expected}, got {got}")


def parse_iso_ms(text: str) -> int:
    """Return a time in ISO 8601, without a zone of UTC, as milliseconds since 1970.

    Raises:
        ValueError: It is another text.
    """
    moment = datetime.fromisoformat(text)
    if moment.tzinfo is None:
        moment = moment.replace(tzinfo=UTC)
    return (moment - EPOCH) // MILLISECOND


def _refuse(reason: DeadReason, message: str) -> NoReturn:
    raise EventInvalid(reason, message) from None


def _kind(value: Any) -> str:
    kinds = {dict: "an object", list: "an array", str: "text", bool: "true or false"}
    kinds |= {int: "an integer", float: "a number with a fraction or exponent"}
    return kinds.get(type(value), "null")


def _check_depth(value: bytes) -> None:
    """Refuse what is nested too deeply, by the bytes alone.

    Readers stop where their stack ends, which depends on the caller and the Python version; this
    limit lies far below and does not.
    """
    if value.count(b"[") + value.count(b"{") <= MAX_DEPTH:
        return
    depth = 0
    for token in _STRING_OR_BRACKET.finditer(value):
        byte = value[token.start()]
        if byte in b"[{":
            depth += 1
            if depth > MAX_DEPTH:
                _refuse(DeadReason.NOT_JSON, f"value: nested deeper than {MAX_DEPTH}")
        elif byte in b"]}":
            depth -= 1


def _parse_integer(text: str) -> int | float:
    return int(text) if len(text) <= MAX_INTEGER_DIGITS else float(text)


def _refuse_constant(name: str) -> NoReturn:
    _refuse(DeadReason.NOT_JSON, f"value: expected JSON, got {name}, which JSON does not have")


def _walk(parsed: dict[str, Any], path: str | None) -> Any:
    """Return what stands at a dotted path; UNSET where a part of it is absent or null."""
    here: Any = parsed
    if path is None:
        return msgspec.UNSET
    for name in path.split("."):
        if here is None or here is msgspec.UNSET:
            return msgspec.UNSET
        if type(here) is not dict:
            return _THROUGH_NON_OBJECT
        here = here.get(name, msgspec.UNSET)
    return here


def _struct_reader(
    paths: tuple[str | None, ...],
) -> tuple[Callable[[bytes], Any], Callable[[Any], _Values]]:
    """Return a parser into structs that hold the paths alone, and a reader of the paths' values.

    The reader raises AttributeError where a path leads through something absent.
    """
    tree: dict[str, Any] = {}
    for path in paths:
        node = tree
        for name in path.split(".") if path else ():
            node = node.setdefault(name, {})
    attributes: dict[str | None, str] = {None: "absent"}

    def build(node: dict[str, Any], above: tuple[str, ...], attribute: str) -> type:
        members: list[tuple[str, type, Any]] = []
        for number, (name, below) in enumerate(node.items()):
            member, path = f"f{number}", (*above, name)
            reached = f"{attribute}{member}"
            attributes[".".join(path)] = reached
            kind = build(below, path, f"{reached}.") if below else Any
            members.append((member, kind, msgspec.UNSET))
        return msgspec.defstruct(
            "Mapped",
            members,
            rename={f"f{number}": name for number, name in enumerate(node)},
            namespace={"absent": msgspec.UNSET},
            gc=False,
        )

    parse: Callable[[bytes], Any] = msgspec.json.Decoder(build(tree, (), "")).decode
    return parse, attrgetter(*(attributes[path] for path in paths))
