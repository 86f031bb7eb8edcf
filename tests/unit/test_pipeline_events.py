import json
import sys
import time
from typing import Any

import pytest

from pipeline.errors import DeadReason, EventInvalid
from pipeline.events import MAX_DEPTH, MAX_TIMESTAMP_MS, Event, EventDecoder
from pipeline.settings import FieldSettings

RECORD_MS = 1_700_000_000_000
CLICK: dict[str, Any] = {"user_id": "u", "item_id": "i", "timestamp_ms": RECORD_MS - 5}


def decode(value: Any, *, record_ms: int = RECORD_MS, **fields: Any) -> Event | None:
    """Decode bytes as they are, anything else as its JSON."""
    if not isinstance(value, bytes | None):
        value = json.dumps(value).encode()
    return EventDecoder(FieldSettings(**fields)).decode(value, record_ms)


def reason(value: Any, *, record_ms: int = RECORD_MS, **fields: Any) -> DeadReason:
    """Return why a value is refused."""
    with pytest.raises(EventInvalid) as refused:
        decode(value, record_ms=record_ms, **fields)
    assert str(refused.value)
    assert "\n" not in str(refused.value)
    return refused.value.reason


def test_a_click_becomes_an_event() -> None:
    """The documented message, with every optional field, and fields that nobody asked for."""
    click = {**CLICK, "event_type": "view", "event_id": "e1", "price": 1.5, "more": {"user_id": 3}}

    assert decode(click) == Event(b"u", "i", RECORD_MS - 5, "e1")


def test_ids_may_be_integers_and_any_text() -> None:
    """An integer id counts as its decimal text; text keeps every character, as UTF-8."""
    assert decode({**CLICK, "user_id": 17, "item_id": -3, "event_id": 0}) == Event(
        b"17", "-3", RECORD_MS - 5, "0"
    )
    assert decode({**CLICK, "user_id": "жü 😀\x00", "item_id": "\n"}) == Event(
        "жü 😀\x00".encode(), "\n", RECORD_MS - 5, None
    )
    assert decode({**CLICK, "user_id": 10**30}).user_key == b"1" + b"0" * 30  # type: ignore[union-attr]


@pytest.mark.parametrize("field", ["user_id", "item_id", "event_id"])
@pytest.mark.parametrize("value", ["x" * 256, "ж" * 128, int("9" * 256)], ids=["x", "ж", "9"])
def test_an_id_may_have_all_the_bytes_that_the_setting_allows(field: str, value: str | int) -> None:
    """Bytes of UTF-8 count, not letters, and the limit itself is allowed."""
    assert decode({**CLICK, field: value}, max_id_bytes=256) is not None
    assert reason({**CLICK, field: value}, max_id_bytes=255) == DeadReason.ID_TOO_LONG


@pytest.mark.parametrize(
    ("change", "expected"),
    [
        ({"user_id": None}, DeadReason.MISSING_USER),
        ({"user_id": ""}, DeadReason.BAD_USER),
        ({"user_id": True}, DeadReason.BAD_USER),
        ({"user_id": 1.0}, DeadReason.BAD_USER),
        ({"user_id": ["u"]}, DeadReason.BAD_USER),
        ({"user_id": {"id": "u"}}, DeadReason.BAD_USER),
        ({"user_id": "\ud800"}, DeadReason.BAD_USER),
        ({"user_id": "x" * 257}, DeadReason.ID_TOO_LONG),
        ({"item_id": None}, DeadReason.MISSING_ITEM),
        ({"item_id": ""}, DeadReason.BAD_ITEM),
        ({"item_id": False}, DeadReason.BAD_ITEM),
        ({"item_id": 0.5}, DeadReason.BAD_ITEM),
        ({"item_id": "a\udfffb"}, DeadReason.BAD_ITEM),
        ({"item_id": "ж" * 129}, DeadReason.ID_TOO_LONG),
        ({"item_id": 10**300}, DeadReason.ID_TOO_LONG),
        ({"event_id": True}, DeadReason.BAD_FIELD),
        ({"event_id": "\udc00"}, DeadReason.BAD_FIELD),
        ({"event_id": "x" * 257}, DeadReason.ID_TOO_LONG),
        ({"timestamp_ms": True}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": [1]}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": "yesterday"}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": ""}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": -1}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": -0.0001}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": "1969-12-31T23:59:59Z"}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": MAX_TIMESTAMP_MS}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": 10**400}, DeadReason.BAD_TIMESTAMP),
        ({"timestamp_ms": RECORD_MS + 86_400_001}, DeadReason.FUTURE_TIMESTAMP),
    ],
)
def test_a_value_of_the_wrong_kind_is_refused(change: dict[str, Any], expected: DeadReason) -> None:
    """Each field has its reasons."""
    assert reason({**CLICK, **change}) == expected


@pytest.mark.parametrize("missing", ["user_id", "item_id"])
def test_an_absent_id_is_missing(missing: str) -> None:
    """An absent field is the same as a null one."""
    click = {name: value for name, value in CLICK.items() if name != missing}

    assert reason(click) == DeadReason(f"missing_{missing.removesuffix('_id')}")


@pytest.mark.parametrize(
    ("value", "expected"),
    [
        (None, DeadReason.NULL_VALUE),
        (b"", DeadReason.NOT_JSON),
        (b"hello", DeadReason.NOT_JSON),
        (b"\x00\x01\xff", DeadReason.NOT_JSON),
        (b'{"user_id": "u"', DeadReason.NOT_JSON),
        (b'{"user_id": "u"} {}', DeadReason.NOT_JSON),
        (b'{"user_id": NaN}', DeadReason.NOT_JSON),
        (b'{"user_id": "u", "item_id": "i", "timestamp_ms": -Infinity}', DeadReason.NOT_JSON),
        (b'{"user_id": "\xff"}', DeadReason.NOT_JSON),
        (b'{"user_id": "\xed\xa0\x80"}', DeadReason.NOT_JSON),
        (json.dumps(CLICK).encode("utf-8-sig"), DeadReason.NOT_JSON),
        (json.dumps(CLICK).encode("utf-16"), DeadReason.NOT_JSON),
        (b"null", DeadReason.NOT_OBJECT),
        (b"[]", DeadReason.NOT_OBJECT),
        (b'"text"', DeadReason.NOT_OBJECT),
        (b" 17 ", DeadReason.NOT_OBJECT),
        (b"1e999", DeadReason.NOT_OBJECT),
        (b'{"user_id": 1e999, "item_id": "i"}', DeadReason.BAD_USER),
        (b'{"user_id": ' + b"9" * 5000 + b', "item_id": "i"}', DeadReason.BAD_USER),
        (b'{"user_id": "u", "item_id": -1e999}', DeadReason.BAD_ITEM),
        (b'{"user_id": "u", "item_id": "i", "timestamp_ms": 1e999}', DeadReason.BAD_TIMESTAMP),
        (b'{"user_id": "u", "item_id": "i", "timestamp_ms": -1e999}', DeadReason.BAD_TIMESTAMP),
        (b'{"user_id": "u", "item_id": "i", "event_id": 1e999}', DeadReason.BAD_FIELD),
    ],
    ids=lambda value: str(value)[:40],
)
def test_bytes_that_are_no_event_are_refused(value: bytes | None, expected: DeadReason) -> None:
    """What is not JSON in UTF-8, or not an object, is told apart."""
    assert reason(value) == expected


def test_a_byte_order_mark_is_named() -> None:
    """The message says what the eye does not see."""
    with pytest.raises(EventInvalid, match="got a byte order mark"):
        decode(json.dumps(CLICK).encode("utf-8-sig"))


@pytest.mark.parametrize(
    ("value", "message"),
    [
        (b"", "value: is no JSON: Expecting value, at character 0"),
        (b'{"a":"', "value: is no JSON: Unterminated string starting, at character 5"),
        (
            b'{"user_id":"u","item_id":"i","timestamp_ms":1800000000000}',
            "timestamp_ms: expected at most 86400.0 s after the record's own timestamp, "
            "got 100000000 s (1157.4 days) after it",
        ),
    ],
)
def test_a_refusal_reads_as_a_sentence(value: bytes, message: str) -> None:
    """The header of a dead letter has it as it is."""
    with pytest.raises(EventInvalid) as refused:
        decode(value)

    assert str(refused.value) == message


def test_trouble_in_a_field_that_nobody_asked_for_loses_no_event() -> None:
    """Lone surrogates and numbers without bound elsewhere in the record do no harm."""
    odd = b'"a": "\\ud800", "b": 1e999, "c": ' + b"9" * 6000
    value = b'{"user_id": "u", "item_id": "i", "timestamp_ms": 1699999999995, ' + odd + b"}"

    assert decode(value) == Event(b"u", "i", RECORD_MS - 5, None)


@pytest.mark.parametrize(
    "bomb",
    [
        b"[" * 1_000_000,
        b'{"user_id":' * 100_000,
        b'{"x":' + b"[" * MAX_DEPTH + b"]" * MAX_DEPTH + b"}",
        b'{"x":"' + b'\\"' * 400_000 + b"[" * 500,
        b'"\\"[{' * 200_000,
    ],
    ids=["open arrays", "open objects", "one too deep", "open text", "many texts"],
)
def test_depth_does_not_crash_and_does_not_take_long(bomb: bytes) -> None:
    """A record of a megabyte of brackets is refused at once, not after quadratic time."""
    started_s = time.perf_counter()

    assert reason(bomb) == DeadReason.NOT_JSON
    assert time.perf_counter() - started_s < 2.0


def test_the_limit_of_depth_does_not_depend_on_the_caller() -> None:
    """A record just within the limit is an event also from deep inside a program."""
    depth = MAX_DEPTH - 1
    value = json.dumps(CLICK).encode()[:-1] + b', "x": ' + b"[" * depth + b"]" * depth
    value += b', "beside": [1]}'

    def deep(frames: int) -> Event | None:
        return decode(value) if frames == 0 else deep(frames - 1)

    assert deep(0) == deep(sys.getrecursionlimit() // 2) == Event(b"u", "i", RECORD_MS - 5, None)


def test_brackets_in_texts_are_no_depth() -> None:
    """Only nesting counts, not how many brackets a record has."""
    click = {**CLICK, "text": "[{" * 1000 + '"', "pairs": [[i] for i in range(1000)]}

    assert decode(click) == Event(b"u", "i", RECORD_MS - 5, None)


def test_a_record_of_a_megabyte_is_an_event() -> None:
    """Size alone is no reason."""
    assert decode({"blob": "x" * 2**20, **CLICK}) == Event(b"u", "i", RECORD_MS - 5, None)


@pytest.mark.parametrize(
    ("unit", "value", "expected"),
    [
        ("auto", 1_600_000_000, 1_600_000_000_000),
        ("auto", 1_600_000_000.25, 1_600_000_000_250),
        ("auto", 1_600_000_000_123, 1_600_000_000_123),
        ("auto", 1_600_000_000_123.4, 1_600_000_000_123),
        ("auto", 1_600_000_000_123_999, 1_600_000_000_123),
        ("auto", 99_999_999_999_999, None),
        ("auto", 100_000_000_000_000, 100_000_000_000),
        ("auto", 0, 0),
        ("auto", 99_999_999_999, None),
        ("auto", 100_000_000_000, 100_000_000_000),
        ("auto", "2020-09-13T12:26:40Z", 1_600_000_000_000),
        ("auto", "1600000000000", None),
        ("iso", "2020-09-13T14:26:40.123456+02:00", 1_600_000_000_123),
        ("iso", "2020-09-13 12:26:40", 1_600_000_000_000),
        ("iso", "2020-09-13", 1_599_955_200_000),
        ("iso", "0001-01-01T00:00:00+23:59", None),
        ("iso", "9999-12-31T23:59:59-23:59", None),
        ("iso", 1_600_000_000, None),
        ("s", 1_600_000_000, 1_600_000_000_000),
        ("s", 5, 5000),
        ("s", 1_600_000_000_000, None),
        ("s", "2020-09-13T12:26:40Z", None),
        ("ms", 1_600_000_000_123, 1_600_000_000_123),
        ("ms", 5, 5),
        ("ms", 1.6e12, 1_600_000_000_000),
        ("ms", 1_600_000_000_123_999, None),
        ("us", 1_600_000_000_123_999, 1_600_000_000_123),
        ("us", 999, 0),
        ("us", 1.5, 0),
    ],
)
def test_timestamps_are_read_in_their_unit(unit: str, value: Any, expected: int | None) -> None:
    """Numbers and ISO 8601 text become milliseconds; what is of another form is refused."""
    click = {**CLICK, "timestamp_ms": value}

    if expected is None:
        assert reason(click, timestamp_unit=unit) == DeadReason.BAD_TIMESTAMP
    else:
        event = decode(click, timestamp_unit=unit)
        assert event is not None
        assert event.timestamp_ms == expected


def test_a_text_without_a_zone_is_utc_whatever_the_machines_zone(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The same record is the same event on every machine."""
    with monkeypatch.context() as patch:
        patch.setenv("TZ", "Asia/Tokyo")
        time.tzset()
        event = decode({**CLICK, "timestamp_ms": "2020-09-13T12:26:40"})
    time.tzset()

    assert event is not None
    assert event.timestamp_ms == 1_600_000_000_000


@pytest.mark.parametrize("fields", [{"timestamp": None}, {"timestamp": "nowhere"}, {}])
def test_an_event_without_a_time_takes_its_records(fields: dict[str, Any]) -> None:
    """No path, nothing at the path, or null there: the record's own timestamp counts."""
    event = decode({"user_id": "u", "item_id": "i", "timestamp_ms": None}, **fields)

    assert event == Event(b"u", "i", RECORD_MS, None)


def test_a_record_may_have_no_timestamp_of_its_own() -> None:
    """Then the event's counts, without a limit to the future; with neither it is refused."""
    later = {**CLICK, "timestamp_ms": MAX_TIMESTAMP_MS - 1}

    assert decode(later, record_ms=-1) == Event(b"u", "i", MAX_TIMESTAMP_MS - 1, None)
    for record_ms in (-1, MAX_TIMESTAMP_MS):
        assert reason(CLICK, record_ms=record_ms, timestamp=None) == DeadReason.BAD_TIMESTAMP


def test_the_future_is_measured_from_the_records_timestamp() -> None:
    """An event may lie ahead of its record by the setting and no more; the clock plays no part."""
    assert decode({**CLICK, "timestamp_ms": RECORD_MS + 2000}, max_future_s=2.0) is not None
    assert (
        reason({**CLICK, "timestamp_ms": RECORD_MS + 2001}, max_future_s=2.0)
        == DeadReason.FUTURE_TIMESTAMP
    )


def test_a_record_of_the_first_millisecond_has_a_timestamp() -> None:
    """0 is a time, 1970: what lies ahead of it by more than the setting is of the future."""
    assert reason(CLICK, record_ms=0) == DeadReason.FUTURE_TIMESTAMP


def test_only_accepted_event_types_count() -> None:
    """Others, and events without a type, are skipped even if they lack the rest."""
    fields = {"accepted_event_types": ("view", "3"), "event_type": "kind"}

    assert decode({**CLICK, "kind": "view"}, **fields) is not None
    assert decode({**CLICK, "kind": 3}, **fields) is not None
    assert decode({"kind": "scroll"}, **fields) is None
    assert decode({**CLICK, "kind": None}, **fields) is None
    assert decode(CLICK, **fields) is None
    assert reason({**CLICK, "kind": 3.0}, **fields) == DeadReason.BAD_FIELD
    assert reason({**CLICK, "kind": {}}, **fields) == DeadReason.BAD_FIELD


def test_event_types_are_not_read_when_all_count() -> None:
    """Without accepted types, whatever stands in the field does no harm."""
    assert decode({**CLICK, "event_type": [1]}) is not None


@pytest.mark.parametrize("value", [None, ""])
def test_an_empty_event_id_is_none(value: str | None) -> None:
    """Events without an id of their own are not each other's repeats."""
    assert decode({**CLICK, "event_id": value}) == Event(b"u", "i", RECORD_MS - 5, None)


def test_paths_lead_into_nested_objects() -> None:
    """A clickstream of another shape is read as it is."""
    fields = {
        "user_id": "context.user.id",
        "item_id": "payload.sku",
        "timestamp": "context.at",
        "timestamp_unit": "iso",
        "event_id": "context.message id",
        "event_type": "type",
        "accepted_event_types": ("product-viewed",),
    }
    click = {
        "type": "product-viewed",
        "context": {"user": {"id": 7}, "at": "2020-09-13T12:26:40Z", "message id": "m"},
        "payload": {"sku": "A-1", "context": {}},
    }

    assert decode(click, **fields) == Event(b"7", "A-1", 1_600_000_000_000, "m")
    assert decode({"type": "page-viewed", "payload": "/home"}, **fields) is None
    assert reason({**click, "payload": None}, **fields) == DeadReason.MISSING_ITEM
    assert reason({**click, "payload": {}}, **fields) == DeadReason.MISSING_ITEM
    assert reason({**click, "payload": "A-1"}, **fields) == DeadReason.BAD_FIELD
    assert reason({**click, "payload": [click["payload"]]}, **fields) == DeadReason.BAD_FIELD
    assert reason({**click, "context": {"user": None}}, **fields) == DeadReason.MISSING_USER


def test_a_message_names_the_path_and_keeps_values_out() -> None:
    """The reason in words has path, expectation and kind, but no user content."""
    with pytest.raises(EventInvalid) as refused:
        decode({"who": {"id": ["secret"]}, "item_id": "i"}, user_id="who.id")

    assert str(refused.value) == "who.id: expected text or an integer, got an array"


@pytest.mark.parametrize("time", ["0001-01-01T00:00:00+23:59", "2100-01-01", 4.2e12, -17])
def test_a_message_keeps_times_out(time: str | float) -> None:
    """What stands where the time should be may be anything of a user's."""
    with pytest.raises(EventInvalid) as refused:
        decode({**CLICK, "timestamp_ms": time})

    assert str(refused.value).startswith("timestamp_ms: expected 1970 to 2099, got a ")
    assert str(refused.value).endswith(" outside")


def test_one_path_may_serve_two_fields() -> None:
    """A field may be, say, the item and the event's id at once."""
    event = decode(CLICK, event_id="item_id", timestamp=None)

    assert event == Event(b"u", "i", RECORD_MS, "i")
