"""Recommendations for people: the topic followed, titles in the place of ids."""

import io
import json
import logging
import subprocess
import sys
from pathlib import Path

import pytest
from rich.console import Console

from pipeline import watch
from pipeline.cluster.topics import create_topics
from pipeline.settings import Settings, settings_flags
from pipeline.watch import follow_recommendations, load_titles, show
from tests.kafka import send


def recommendation(user: str, *items: str) -> tuple[int, bytes, bytes]:
    """A record as a worker sends it."""
    value = {
        "user_id": user,
        "items": [{"item_id": item, "score": 1.5} for item in items],
        "model_version": 3,
        "source": "model",
        "event": {"partition": 0, "offset": 7, "timestamp_ms": 1_700_000_000_000},
        "emitted_at_ms": 1_700_000_000_010,
        "history_length": 12,
    }
    return 0, user.encode(), json.dumps(value).encode()


@pytest.fixture
def watched(settings: Settings) -> Settings:
    """Topics that exist."""
    create_topics(settings)
    return settings


def run_watch(settings: Settings, *arguments: str) -> subprocess.CompletedProcess[str]:
    """Call the command with stdout as a pipe."""
    command = [sys.executable, "-m", "pipeline", "watch", "--from-start", *arguments]
    command += settings_flags(settings)
    return subprocess.run(command, capture_output=True, text=True, check=True, timeout=60)


def test_the_command_prints_a_line_each_with_titles_of_a_file(
    watched: Settings, tmp_path: Path
) -> None:
    """Titles where the file has one, ids elsewhere; a null value is a list taken back, no list."""
    address, topic = watched.kafka.bootstrap_servers, watched.topics.recommendations
    titles = tmp_path / "items.csv"
    titles.write_text("item,title\na,Anna's [bold]lamp\n")
    records = [recommendation("u1", "a", "b"), (0, b"u9", None), (0, b"u8", b"{}")]
    records += [(0, b"u7", b'{"user_id":"\xff"}'), (0, b"u6", b"[" * 2000)]
    send(address, topic, [*records, recommendation("u2", "b"), recommendation("u3", "a")])

    done = run_watch(watched, "--count", "2", "--items", str(titles))

    assert done.stdout.splitlines() == [
        "u1 (event 12, model 3): Anna's [bold]lamp | b",
        "u9: list withdrawn",
        "u2 (event 12, model 3): b",
    ]
    assert done.stderr.count("expected a recommendation") == 3


def test_titles_come_from_the_items_topic_where_no_file_is_named(watched: Settings) -> None:
    """The newest title of an item counts; a withdrawn item, or a broken record, has none."""
    send(
        watched.kafka.bootstrap_servers,
        watched.topics.items,
        [
            (0, b"a", b'{"title": "old"}'),
            (0, b"b", b'{"title": "gone"}'),
            (0, b"a", b'{"title": "new", "available": false}'),
            (0, b"b", None),
            (0, b"c", b"not json"),
            (0, b"d", b'{"available": true}'),
            (0, b"e", b'{"title": "caf\xe9"}'),
        ],
    )

    assert load_titles(watched, None) == {"a": "new"}


def test_no_items_topic_means_no_titles(settings: Settings) -> None:
    """Watching needs no catalogue."""
    assert load_titles(settings, None) == {}


def test_following_begins_at_the_end_of_the_moment(watched: Settings) -> None:
    """What was there before is not shown, what comes afterwards is, for the users asked for."""
    address, topic = watched.kafka.bootstrap_servers, watched.topics.recommendations
    send(address, topic, [recommendation("early", "a")])

    following = follow_recommendations(watched, users=("u1", "u2"))
    send(address, topic, [recommendation(user, "a") for user in ("u1", "other", "u2")])

    assert [next(following).user_id, next(following).user_id] == ["u1", "u2"]


def test_a_terminal_shows_a_table_with_titles_as_they_are(watched: Settings) -> None:
    """Brackets in a title are no markup, and only the first items have room."""
    send(
        watched.kafka.bootstrap_servers,
        watched.topics.recommendations,
        [recommendation("u1", "a", "b", "c", "d")],
    )
    screen = io.StringIO()
    console = Console(file=screen, force_terminal=True, width=100)

    show(
        follow_recommendations(watched, from_start=True),
        {"a": "[red]lamp"},
        console=console,
        count=1,
    )

    assert "[red]lamp | b | c" in screen.getvalue()
    assert "c | d" not in screen.getvalue()


def test_a_quiet_topic_is_said_to_be_waited_for(
    watched: Settings, caplog: pytest.LogCaptureFixture
) -> None:
    """With the way to see what is in the topic already, where that is not shown."""
    caplog.set_level(logging.INFO)

    follow_recommendations(watched)
    follow_recommendations(watched, from_start=True)

    topic = watched.topics.recommendations
    assert [record.getMessage() for record in caplog.records if record.name == watch.__name__] == [
        f"waiting for lists on {topic} (--from-start shows what is there)",
        f"waiting for lists on {topic}",
    ]
