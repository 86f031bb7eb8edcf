"""Kafka's jars: fetched over HTTP from a repository, verified, and needed only once.

The repository is a web server on loopback that has what this machine's Maven cache has.
"""

import threading
from collections.abc import Iterator
from functools import partial
from http.server import SimpleHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path

import pytest
from jgo.config import GlobalSettings

from pipeline.cluster import jars as kafka_jars
from pipeline.cluster.jars import fetch_jars, locked_jars, read_lock
from pipeline.errors import BrokerUnavailable


class QuietHandler(SimpleHTTPRequestHandler):
    """Serves files and logs nothing."""

    def log_message(self, *_: object) -> None:
        """Say nothing."""


@pytest.fixture
def repository(monkeypatch: pytest.MonkeyPatch) -> Iterator[ThreadingHTTPServer]:
    """A web server with this machine's jars in the place of Maven Central."""
    fetch_jars()
    handler = partial(QuietHandler, directory=str(GlobalSettings.load().repo_cache))
    with ThreadingHTTPServer(("127.0.0.1", 0), handler) as server:
        thread = threading.Thread(target=server.serve_forever)
        thread.start()
        url = f"http://127.0.0.1:{server.server_port}"
        monkeypatch.setattr(kafka_jars, "MAVEN_CENTRAL_URL", url)
        yield server
        server.shutdown()
        thread.join()


def test_jars_are_fetched_once_and_then_need_no_network(
    repository: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """An empty cache is filled, then nobody is asked; a damaged jar alone is fetched again."""
    version, paths = fetch_jars(tmp_path)
    assert len(paths) == len(locked_jars()[1]) > 40
    assert all(path.is_relative_to(tmp_path) for path in paths)
    written = {path: path.stat().st_mtime_ns for path in paths}
    broken = paths[3]
    broken.write_bytes(broken.read_bytes()[:1000])  # as an interrupted download leaves it

    again = fetch_jars(tmp_path)
    repository.shutdown()
    repository.server_close()
    offline = fetch_jars(tmp_path)

    assert again == offline == (version, paths)
    fetched_again = {path for path in paths if path.stat().st_mtime_ns != written[path]}
    assert fetched_again == {broken}


def test_without_network_the_missing_jar_is_named_with_what_to_do(
    repository: ThreadingHTTPServer, tmp_path: Path
) -> None:
    """One line: which jar, from where it was wanted, and the ways out."""
    repository.shutdown()
    repository.server_close()

    with pytest.raises(BrokerUnavailable, match=r"no jar .*--kafka\.bootstrap-servers") as caught:
        fetch_jars(tmp_path)

    assert str(repository.server_port) in str(caught.value)
    assert list(tmp_path.rglob("*.jar")) == []


def test_a_jar_of_other_content_is_refused_and_not_kept(
    repository: ThreadingHTTPServer, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A repository that hands out something else cannot get it started."""
    version, jars = locked_jars()
    wrong = kafka_jars.LockedJar(coordinate=jars[0].coordinate, sha256="0" * 64)
    monkeypatch.setattr(kafka_jars, "locked_jars", lambda: (version, (wrong,)))

    with pytest.raises(BrokerUnavailable, match=rf"{wrong.coordinate}.*expected sha256 000"):
        fetch_jars(tmp_path)

    assert list(tmp_path.rglob("*.jar")) == []


@pytest.mark.parametrize(
    ("text", "message"),
    [
        ("# nothing\n", "among 0 jars"),
        ("abc org.apache.kafka:kafka_2.13:4.3.1\n", "line 1"),
        ("\n" + "a" * 64 + "  org.apache.kafka:kafka_2.13\n", "line 2"),
    ],
    ids=["no kafka", "short digest", "no version"],
)
def test_a_broken_lock_file_is_refused(text: str, message: str) -> None:
    """A lock that does not name Kafka, or a line of another form, is no lock."""
    with pytest.raises(ValueError, match=message):
        read_lock(text)
