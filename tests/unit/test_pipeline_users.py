"""`lrurec users`: arguments that no command can be made of, and what is read from a topic."""

import msgspec
import pytest

from pipeline.commands.users import Command, run
from pipeline.errors import SettingsInvalid
from pipeline.settings import parse_command
from pipeline.user_commands import MAX_BLOCKED_ITEMS, UserCommand, decode_user_command
from pipeline.users import check_id, format_time, parse_time_ms

NOW_MS = 1_767_225_600_000  # 2026-01-01


@pytest.mark.parametrize(
    ("text", "time_ms"),
    [
        ("2025-01-01T00:00:00Z", 1_735_689_600_000),
        ("2025-01-01T01:00:00.250+01:00", 1_735_689_600_250),
        ("2025-01-01", 1_735_689_600_000),
        ("2025-01-01T00:00:00.0009", 1_735_689_600_000),
        ("1735689600001", 1_735_689_600_001),
        ("1970-01-01", 0),
        ("1973-03-03T09:46:40Z", 10**11),
        (str(NOW_MS), NOW_MS),
    ],
)
def test_a_time_is_iso_8601_or_milliseconds(text: str, time_ms: int) -> None:
    """Without a zone it is UTC; what is below a millisecond is cut."""
    assert parse_time_ms(text, NOW_MS) == time_ms


@pytest.mark.parametrize(
    "text",
    [
        "",
        "tomorrow",
        "1735689600",  # seconds
        "-1735689600000",
        "1735689600000.5",
        "\u0661\u0662\u0663",  # digits, but not of ASCII
        "20250101",
        "1969-12-31",
        "1970-01-01T00:00:00.001",
        "1973-03-03T09:46:39.999Z",
        "0001-01-01T00:00:00+14:00",
        "9999-12-31T23:59:59-14:00",
        str(NOW_MS + 1),
        "2026-01-01T00:00:01Z",
        "9" * 5000,
    ],
)
def test_another_time_is_refused(text: str) -> None:
    """Seconds taken for milliseconds would forget nothing, the future everything for ever."""
    with pytest.raises(SettingsInvalid, match=r"^a time must be "):
        parse_time_ms(text, NOW_MS)


@pytest.mark.parametrize("time", [1, 1_735_689_600, 10**11 - 1])
def test_a_command_to_forget_in_seconds_is_void(time: int) -> None:
    """It would forget nothing, and look as if it did."""
    with pytest.raises(ValueError, match=r"^forget_before_ms: expected 0 or at least 1000"):
        decode_user_command(b"u", b'{"forget_before_ms":%d}' % time)


@pytest.mark.parametrize("time", [0, 10**11, 1_735_689_600_000])
def test_a_command_to_forget_in_milliseconds_is_one(time: int) -> None:
    """Zero forgets nothing."""
    command = decode_user_command(b"u", b'{"forget_before_ms":%d}' % time)

    assert command == UserCommand(forget_before_ms=time)


def test_a_user_has_so_many_blocked_items_and_no_more() -> None:
    """Each of them costs time at every list of the user."""
    full = list(range(MAX_BLOCKED_ITEMS))

    command = decode_user_command(b"u", msgspec.json.encode({"blocked_items": full}))

    assert len(command.blocked_ids) == MAX_BLOCKED_ITEMS
    with pytest.raises(ValueError, match="blocked_items"):
        decode_user_command(b"u", msgspec.json.encode({"blocked_items": [*full, "one more"]}))


def test_any_timestamp_of_a_record_can_be_shown() -> None:
    """Producers can give any."""
    assert format_time(1_735_689_600_250) == "2025-01-01T00:00:00.250+00:00"
    assert format_time(-1) == "1969-12-31T23:59:59.999+00:00"
    assert format_time(2**63 - 1) == f"{2**63 - 1} ms"


@pytest.mark.parametrize("text", ["", "x" * 9, "\u20ac\u20ac\u20ac", "\udcff"])
def test_what_can_be_no_id_is_refused(text: str) -> None:
    """By its bytes in UTF-8, as ids in events are."""
    with pytest.raises(SettingsInvalid, match=r"^an item must be an id "):
        check_id("an item", text, 8)
    check_id("an item", "\u20ac\u20ac", 8)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        (["show", ""], "the user must be an id of 1 to 256 bytes (fields.max_id_bytes), got 0"),
        (["forget", "u" * 257], "the user must be an id of 1 to 256 bytes"),
        (["block", "u", "a", ""], "an item must be an id of 1 to 256 bytes"),
        (["block", "u"], "block takes at least one item"),
        (["unblock", "u"], "unblock takes at least one item"),
        (["show", "u", "a"], "show takes no items"),
        (["forget", "u", "a"], "forget takes no items"),
        (["forget", "u", "--before", "soon"], "a time must be ISO 8601 or milliseconds since 1970"),
        (
            ["block", "u", "a", "--before", "2025-01-01"],
            "--before goes with forget, not with block",
        ),
        (["remember", "u"], "remember"),
    ],
)
def test_wrong_arguments_are_refused(arguments: list[str], message: str) -> None:
    """In one line, before Kafka is asked for anything."""
    nowhere = ["--kafka.bootstrap-servers", "127.0.0.1:1"]

    with pytest.raises(SettingsInvalid) as caught:
        run(parse_command(Command, [*arguments, *nowhere], prog="lrurec users", environ={}))

    assert message in str(caught.value)
    assert "\n" not in str(caught.value)
