"""The jars of Apache Kafka for the local broker: which ones, from where, and that they are right.

`pipeline/data/kafka.lock` names every jar with its sha256. They are fetched once from Maven Central
by jgo into the Maven cache of this user (`M2_REPO`, else `~/.m2/repository`; mirrors and cache as
set in jgo's own configuration file) and need no network afterwards.

Run as a program it writes a new lock: see the head of `kafka.lock`.
"""

import fcntl
import hashlib
import logging
import sys
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager
from dataclasses import dataclass
from importlib.resources import files
from pathlib import Path

import jgo
import requests
from jgo.config import GlobalSettings
from jgo.constants import MAVEN_CENTRAL_URL
from jgo.maven import Artifact, MavenContext

from pipeline.errors import BrokerUnavailable

_log = logging.getLogger(__name__)

LOCK_NAME = "kafka.lock"
FETCH_THREADS = 8
# The broker itself, and a logger that writes to stderr: without one it would start mute.
ENDPOINT = "org.apache.kafka:kafka_2.13:{version}+org.slf4j:slf4j-simple:1.7.36"

LOCK_HEAD = """\
# Apache Kafka {version} for `lrurec broker start`: the sha256 and Maven coordinate of every jar.
# To renew, for a version VERSION (https://kafka.apache.org/downloads):
#     python -m pipeline.cluster.jars VERSION > kafka.new && mv kafka.new pipeline/data/kafka.lock
# and, before committing, compare the digests of the org.apache.kafka jars with a second source.
"""


@dataclass(frozen=True, kw_only=True)
class LockedJar:
    """One jar of the lock file: `group:artifact:version` and the sha256 of its bytes in hex."""

    coordinate: str
    sha256: str


def read_lock(text: str) -> tuple[str, tuple[LockedJar, ...]]:
    """Parse a lock file: one `sha256  group:artifact:version` a line, `#` for comments.

    Returns:
        Kafka's version and all jars.

    Raises:
        ValueError: A line of another form, or no jar of Kafka itself.
    """
    jars = []
    for number, line in enumerate(text.splitlines(), start=1):
        if not line.strip() or line.startswith("#"):
            continue
        words = line.split()
        if len(words) != 2 or len(words[0]) != 64 or words[1].count(":") != 2:
            msg = (
                f"{LOCK_NAME} line {number}: expected 'sha256 group:artifact:version', got {line!r}"
            )
            raise ValueError(msg)
        jars.append(LockedJar(coordinate=words[1], sha256=words[0]))
    for jar in jars:
        group, artifact, version = jar.coordinate.split(":")
        if (group, artifact) == ("org.apache.kafka", "kafka_2.13"):
            return version, tuple(jars)
    msg = f"{LOCK_NAME}: expected org.apache.kafka:kafka_2.13 among {len(jars)} jars, got none"
    raise ValueError(msg)


def locked_jars() -> tuple[str, tuple[LockedJar, ...]]:
    """Read the lock file of this installation: Kafka's version and all jars."""
    return read_lock((files("pipeline.data") / LOCK_NAME).read_text(encoding="utf-8"))


def fetch_jars(cache_dir: Path | None = None) -> tuple[str, list[Path]]:
    """Make sure that every jar of the lock is in the Maven cache with its right digest.

    Fetches what is missing, and once more what is damaged (an interrupted download, say). Touches
    no network when all are there. Safe to call from several processes at a time.

    Args:
        cache_dir: Maven cache; None for the one of this user.

    Returns:
        Kafka's version and the class path, in the order of the lock.

    Raises:
        BrokerUnavailable: A jar cannot be had, or has another digest than the lock says.
    """
    version, jars = locked_jars()
    config = GlobalSettings.load()
    context = MavenContext(
        repo_cache=cache_dir or config.repo_cache,
        # What a jar must contain is pinned, so a mirror that the user names is as good and first.
        remote_repos={**config.repositories, "central": MAVEN_CENTRAL_URL},
    )
    wanted = [jar for jar in jars if not _is_there(context, jar)]
    if wanted:
        with _one_at_a_time(context.repo_cache), ThreadPoolExecutor(FETCH_THREADS) as pool:
            _log.info(
                "fetching Apache Kafka %s into %s: %d of %d jars, once",
                version,
                context.repo_cache,
                len(wanted),
                len(jars),
            )
            list(pool.map(lambda jar: _fetch(context, jar), wanted))
    return version, [_path(context, jar) for jar in jars]


def _artifact(context: MavenContext, jar: LockedJar) -> Artifact:
    group, artifact, version = jar.coordinate.split(":")
    return context.project(group, artifact).at_version(version).artifact()


def _path(context: MavenContext, jar: LockedJar) -> Path:
    path = _artifact(context, jar).cached_path
    assert path is not None  # only a context without a cache has none
    return path


def _is_there(context: MavenContext, jar: LockedJar) -> bool:
    path = _path(context, jar)
    return path.is_file() and _sha256(path) == jar.sha256


def _fetch(context: MavenContext, jar: LockedJar) -> None:
    if _is_there(context, jar):  # another process was quicker
        return
    path = _path(context, jar)
    if path.is_file():
        _log.warning("%s is damaged (not the sha256 of %s): fetching it again", path, LOCK_NAME)
        path.unlink()
    try:
        _artifact(context, jar).resolve()
    except (requests.RequestException, OSError, RuntimeError) as exc:
        path.unlink(missing_ok=True)  # jgo writes in place: what is there now may be half a jar
        where = ", ".join(context.remote_repos.values())
        msg = (
            f"no jar {jar.coordinate} for the local Kafka: neither in {context.repo_cache} nor "
            f"from {where} ({type(exc).__name__}: {exc}); start once with network access, copy "
            "that folder from a machine that has the jars, or name a Kafka of your own: "
            "--kafka.bootstrap-servers"
        )
        raise BrokerUnavailable(msg) from exc
    got = _sha256(path)
    if got != jar.sha256:
        path.unlink()
        msg = f"{jar.coordinate} as fetched: expected sha256 {jar.sha256} ({LOCK_NAME}), got {got}"
        raise BrokerUnavailable(msg)


def _sha256(path: Path) -> str:
    with path.open("rb") as file:
        return hashlib.file_digest(file, "sha256").hexdigest()


@contextmanager
def _one_at_a_time(repo_cache: Path) -> Iterator[None]:
    """Hold the one lock of this cache: two processes must not write the same jar."""
    repo_cache.mkdir(parents=True, exist_ok=True)
    with (repo_cache / ".lrurec-kafka.lock").open("w") as file:
        fcntl.flock(file, fcntl.LOCK_EX)
        yield


def make_lock(version: str) -> str:
    """Resolve Kafka's dependencies at Maven Central and return the text of a new lock file."""
    artifacts = jgo.resolve(ENDPOINT.format(version=version))
    with ThreadPoolExecutor(FETCH_THREADS) as pool:
        paths = list(pool.map(lambda artifact: artifact.resolve(), artifacts))
    rows = sorted(
        f"{_sha256(path)}  {artifact.groupId}:{artifact.artifactId}:{artifact.version}"
        for artifact, path in zip(artifacts, paths, strict=True)
    )
    rows.sort(key=lambda row: row.split()[1])
    return LOCK_HEAD.format(version=version) + "\n".join(rows) + "\n"


if __name__ == "__main__":
    print(make_lock(sys.argv[1]), end="")
