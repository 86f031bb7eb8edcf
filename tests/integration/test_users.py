"""`lrurec users` on a real Kafka: what it sends is what workers and trainers read."""

import json
import time
from dataclasses import replace
from typing import Any

import msgspec
import pytest

from pipeline.cluster.records import Record, end_offsets, read_partitions
from pipeline.cluster.topics import create_topics
from pipeline.commands.users import Command, run
from pipeline.errors import BrokerUnavailable, SettingsInvalid, TopicMismatch
from pipeline.settings import Settings, parse_command, settings_flags
from pipeline.user_commands import MAX_BLOCKED_ITEMS, UserCommand, decode_user_command
from pipeline.users import read_user
from tests.kafka import send


@pytest.fixture
def shop(settings: Settings) -> Settings:
    """Settings whose topics exist."""
    create_topics(settings)
    return settings


def run_users(settings: Settings, *arguments: str) -> int:
    flags = [*arguments, *settings_flags(settings)]
    return run(parse_command(Command, flags, prog="lrurec users", environ={}))


def report_of(settings: Settings, *arguments: str) -> dict[str, Any]:
    """What a command that succeeds reports as JSON."""
    file = settings.worker.data_dir.parent / "users.json"
    assert run_users(settings, *arguments, "--json", str(file)) == 0
    report: dict[str, Any] = json.loads(file.read_text())
    return report


def records(settings: Settings) -> list[Record]:
    return list(read_partitions(settings.kafka, settings.topics.users))


def newest_on_each_partition(settings: Settings) -> dict[int, tuple[bytes | None, UserCommand]]:
    """The last record of each partition, as those who read the topic decode it."""
    return {
        record.partition: (record.key, decode_user_command(record.key, record.value))
        for record in records(settings)
    }


def test_each_call_changes_one_part_and_sends_the_whole_to_every_partition(
    shop: Settings,
) -> None:
    """Nobody knows which partition the user's other commands are on."""
    before_ms = 1_735_689_600_000
    for arguments, expected in [
        (["block", "\u00e4nne", "sku-1", "7"], UserCommand(0, ("sku-1", "7"))),
        (["forget", "\u00e4nne", "--before", "2025-01-01"], UserCommand(before_ms, ("sku-1", "7"))),
        (["block", "\u00e4nne", "7", "b"], UserCommand(before_ms, ("sku-1", "7", "b"))),
        (["unblock", "\u00e4nne", "sku-1", "none"], UserCommand(before_ms, ("7", "b"))),
        (["forget", "\u00e4nne", "--before", "2024-01-01"], UserCommand(before_ms, ("7", "b"))),
        (["unblock", "\u00e4nne", "7", "b"], UserCommand(before_ms)),
    ]:
        report = report_of(shop, *arguments)

        newest = newest_on_each_partition(shop)
        assert newest == dict.fromkeys(range(4), ("\u00e4nne".encode(), expected))
        assert report["forget_before_ms"] == expected.forget_before_ms
        assert report["blocked_items"] == list(expected.blocked_items)
        assert {record["partition"] for record in report["records"]} == set(range(4))
        assert read_user(shop, "\u00e4nne").command == expected
    timestamps = [record.timestamp for record in records(shop) if record.partition == 2]
    assert timestamps == sorted(set(timestamps))  # a reader that goes by time sees each replaced


def test_without_a_time_all_until_now_is_forgotten(shop: Settings) -> None:
    """What came in before the call."""
    began_ms = time.time_ns() // 1_000_000

    report = report_of(shop, "forget", "anna")

    assert began_ms <= report["forget_before_ms"] <= time.time_ns() // 1_000_000


def test_what_holds_is_shown_with_the_record_that_says_so(
    shop: Settings, capsys: pytest.CaptureFixture[str]
) -> None:
    """The newest record by its time, on whatever partition; nothing is sent."""
    run_users(shop, "forget", "anna", "--before", "2025-01-01T00:00:00Z")
    send(
        shop.kafka.bootstrap_servers,
        shop.topics.users,
        [
            (3, b"bert", b'{"blocked_items": [7]}'),
            (3, b"anna", b'{"forget_before_ms": 1735689600000, "blocked_items": ["x\\u001b", 7]}'),
            (3, b"anna", b'{"blocked": ["misspelt"]}'),
        ],
    )
    ends = end_offsets(shop.kafka, shop.topics.users)
    capsys.readouterr()

    report = report_of(shop, "show", "anna")
    shown = capsys.readouterr().out.splitlines()
    nobody = report_of(shop, "show", "nobody")

    (record,) = report["records"]
    assert (record["partition"], record["offset"]) == (3, 2)
    assert (report["user"], report["blocked_items"]) == ("anna", ["x\x1b", "7"])
    assert shown[:3] == [
        "user       anna",
        "forgotten  before 2025-01-01T00:00:00.000+00:00 (1735689600000)",
        "blocked    x?, 7",
    ]
    assert shown[3].startswith(f"read at    {shop.topics.users}, partition 3, offset 2, of 20")
    assert (nobody["forget_before_ms"], nobody["blocked_items"], nobody["records"]) == (0, [], [])
    assert end_offsets(shop.kafka, shop.topics.users) == ends


def test_what_was_lifted_by_a_null_value_holds_no_more(shop: Settings) -> None:
    """A producer of the shop's may send it."""
    run_users(shop, "block", "anna", "a")
    send(shop.kafka.bootstrap_servers, shop.topics.users, [(1, b"anna", None)])

    assert report_of(shop, "show", "anna")["blocked_items"] == []
    assert report_of(shop, "block", "anna", "b")["blocked_items"] == ["b"]


def test_too_many_blocked_items_are_refused(shop: Settings) -> None:
    """With those that are blocked already; nothing is sent."""
    full = {"blocked_items": list(range(MAX_BLOCKED_ITEMS))}
    value = msgspec.json.encode(full)
    send(shop.kafka.bootstrap_servers, shop.topics.users, [(0, b"anna", value)])
    ends = end_offsets(shop.kafka, shop.topics.users)

    with pytest.raises(SettingsInvalid, match="can have 1000 blocked items, this would make 1001"):
        run_users(shop, "block", "anna", "new")

    assert end_offsets(shop.kafka, shop.topics.users) == ends
    assert run_users(shop, "block", "anna", "0", "999") == 0


def test_without_the_topic_or_kafka_a_line_says_so(settings: Settings) -> None:
    """The topic is not made by the way."""
    kafka = replace(settings.kafka, bootstrap_servers="127.0.0.1:1", connect_timeout_s=0.2)

    for _ in range(2):
        with pytest.raises(TopicMismatch, match=r"not found there; .* make it: lrurec"):
            run_users(settings, "forget", "anna")
    with pytest.raises(BrokerUnavailable, match="no Kafka within"):
        run_users(replace(settings, kafka=kafka), "show", "anna")
