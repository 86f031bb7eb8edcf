"""The local Kafka: real processes, started and stopped, killed and repaired."""

import json
import os
import signal
import socket
import subprocess
import sys
from collections.abc import Callable
from dataclasses import replace
from pathlib import Path

import psutil
import pytest

from pipeline.cluster.broker import find, free_port, running_broker, start, status, stop
from pipeline.cluster.records import read_partitions
from pipeline.errors import BrokerUnavailable, PortTaken, SettingsInvalid
from pipeline.settings import BrokerSettings, KafkaSettings
from tests.kafka import admin_client, create_topic, send, wait_until


@pytest.fixture
def settings(tmp_path: Path) -> BrokerSettings:
    """A broker of its own, with a port that nobody has."""
    return BrokerSettings(data_dir=tmp_path / "broker", port=free_port(), heap_mib=256)


def is_running(pid: int) -> bool:
    """Whether the process runs, and is not merely waiting to be collected."""
    try:
        return psutil.Process(pid).status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def command_line(settings: BrokerSettings, action: str) -> list[str]:
    """Return `lrurec broker` for these settings, as another program would call it."""
    command = [sys.executable, "-m", "pipeline", "broker", action]
    command += ["--broker.data-dir", str(settings.data_dir), "--broker.port", str(settings.port)]
    return [*command, "--broker.heap-mib", str(settings.heap_mib)]


def run_command(settings: BrokerSettings, action: str, report: Path) -> int:
    """Call it and return its exit code; the result goes into the report."""
    command = [*command_line(settings, action), "--json", str(report)]
    return subprocess.run(command, check=False, timeout=120).returncode


def test_the_command_starts_finds_and_stops_one_broker(
    settings: BrokerSettings, tmp_path: Path
) -> None:
    """Starting twice is starting once; after the stop the process is gone and status says so."""
    report = tmp_path / "report.json"

    codes = [run_command(settings, "start", report)]
    first = json.loads(report.read_text())
    codes.append(run_command(settings, "start", report))
    second = json.loads(report.read_text())
    codes.append(run_command(settings, "status", report))
    third = json.loads(report.read_text())
    with admin_client(first["address"]) as admin:
        answered = admin.describe_cluster()["brokers"]
    own_session = os.getsid(first["pid"]) != os.getsid(0)
    codes.append(run_command(settings, "stop", report))
    stopped = json.loads(report.read_text())

    assert codes == [0, 0, 0, 0]
    assert first == second == third
    assert first["address"] == f"127.0.0.1:{settings.port}"
    assert first["version"].startswith("4.")
    assert Path(first["log_file"]).is_relative_to(settings.data_dir)
    assert answered[0]["port"] == settings.port
    assert own_session, "Ctrl-C in this terminal would reach Kafka"
    assert stopped == {"running": False, "stopped": True}
    assert not is_running(first["pid"])
    assert run_command(settings, "status", report) == 1
    assert json.loads(report.read_text()) == {"running": False}
    assert run_command(settings, "stop", report) == 0
    assert json.loads(report.read_text()) == {"running": False, "stopped": False}


def test_two_brokers_run_side_by_side(kafka: str, settings: BrokerSettings) -> None:
    """Another folder and port make another cluster; a taken port is refused with its holder."""
    with running_broker(settings) as info:
        create_topic(info.address, "only-here")
        with admin_client(kafka) as ours, admin_client(info.address) as other:
            assert "only-here" in other.list_topics()
            assert "only-here" not in ours.list_topics()
        third = BrokerSettings(data_dir=settings.data_dir.with_name("third"), port=settings.port)
        with pytest.raises(PortTaken, match=rf"{settings.port}.*{settings.data_dir}.*{info.pid}"):
            start(third)

        with running_broker(settings) as again:
            assert again == info
        assert status(settings) == info, "the inner block stopped what it had not started"

    assert not is_running(info.pid)
    assert find(third) is None


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can be another user for a while")
def test_a_process_of_another_user_is_no_broker_of_this_one(settings: BrokerSettings) -> None:
    """Whatever command line it has: clients would send it what is meant for their own Kafka."""
    with running_broker(settings) as info:
        assert find(settings) == info

        os.seteuid(65534)
        try:
            found = find(settings)
        finally:
            os.seteuid(0)

        assert found is None


def test_records_survive_kill_9_and_a_new_port(settings: BrokerSettings) -> None:
    """What was confirmed is there after the hardest stop, also at another address."""
    info = start(settings)
    create_topic(info.address, "kept", partitions=2)
    send(info.address, "kept", [(number % 2, b"k", b"%d" % number) for number in range(1000)])
    os.kill(info.pid, signal.SIGKILL)
    wait_until(lambda: not is_running(info.pid), "the killed broker is gone")

    moved = BrokerSettings(data_dir=settings.data_dir, port=free_port())
    with running_broker(moved) as again:
        kafka = KafkaSettings(bootstrap_servers=again.address)
        values = sorted(int(record.value or b"") for record in read_partitions(kafka, "kept"))

    assert again.address != info.address
    assert values == list(range(1000))


def test_a_folder_may_have_any_letters(settings: BrokerSettings) -> None:
    """Java would read their bytes as other letters, and a backslash as none: topics lie there."""
    folder = settings.data_dir / r"brök \u0041\n é 店 𝄞 '\"=#!:"

    with running_broker(replace(settings, data_dir=folder)) as info:
        create_topic(info.address, "kept")

        assert info.data_dir == folder
        assert list(folder.glob("log/kept-0"))
    assert list(settings.data_dir.iterdir()) == [folder]


@pytest.mark.parametrize(
    ("name", "shown"),
    [("a,b", "a,b"), ("a\nlog.dirs=b", r"a\\nlog.dirs=b"), ("a\udcff", r"a\\udcff")],
    ids=["comma", "line end", "no UTF-8"],
)
def test_a_folder_that_kafka_cannot_use_is_a_wrong_setting(
    settings: BrokerSettings, name: str, shown: str
) -> None:
    """The message is one line, and shows what is wrong with the path."""
    with pytest.raises(SettingsInvalid, match=rf"^broker\.data_dir must be .*, got '.*/{shown}'$"):
        start(replace(settings, data_dir=settings.data_dir / name))


def test_a_start_right_after_kill_9_gets_the_same_port(settings: BrokerSettings) -> None:
    """A dying Kafka holds its port until its last thread is gone: the start waits for that."""
    try:
        for _ in range(3):
            os.kill(start(settings).pid, signal.SIGKILL)

        assert start(settings).address == f"127.0.0.1:{settings.port}"
    finally:
        stop(settings)


@pytest.mark.parametrize("moment", ["formatting", "starting"])
def test_a_start_that_was_killed_is_repaired_by_the_next(
    settings: BrokerSettings, moment: str
) -> None:
    """Kill -9 while storage is formatted or Kafka comes up: the next start serves, one Kafka."""
    starter = subprocess.Popen(command_line(settings, "start"))
    signs = {
        "formatting": lambda: list(settings.data_dir.glob("formatting-*/server.properties")),
        "starting": lambda: find(settings) is not None,
    }
    try:
        wait_until(signs[moment], f"the start is {moment}")
    finally:
        starter.kill()
        starter.wait()

    with running_broker(settings) as info:
        assert status(settings) == info
        assert len(kafkas_in(settings.data_dir)) == 1
        assert not list(settings.data_dir.glob("formatting-*"))
        stop(settings)  # one that was found running is left running by the block


def kafkas_in(data_dir: Path) -> list[int]:
    """Processes of Java that were started with this data directory."""
    return [
        process.pid
        for process in psutil.process_iter(["cmdline"])
        if "kafka.Kafka" in (words := process.info["cmdline"] or [])
        and f"-Dlrurec.data-dir={data_dir}" in words
        and words[0] != "/bin/sh"
    ]


def test_a_broker_ends_with_its_dead_owner(settings: BrokerSettings) -> None:
    """A test run or a demo that is killed leaves no Kafka behind."""
    code = (
        "import sys, time; from pathlib import Path\n"
        "from pipeline.cluster.broker import running_broker\n"
        "from pipeline.settings import BrokerSettings\n"
        "with running_broker(BrokerSettings(data_dir=Path(sys.argv[1]), port=int(sys.argv[2]))) "
        "as info: print(info.pid, flush=True); time.sleep(600)"
    )
    command = [sys.executable, "-c", code, str(settings.data_dir), str(settings.port)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as owner:
        assert owner.stdout is not None
        pid = int(owner.stdout.readline())
        assert is_running(pid)
        owner.kill()

    wait_until(lambda: not is_running(pid), "Kafka ends with its owner", deadline_s=10)


def test_a_port_of_another_program_is_refused_at_once(settings: BrokerSettings) -> None:
    """The message names the port and the flag to change it; nothing was started or written."""
    with socket.socket() as other:
        other.bind(("127.0.0.1", settings.port))
        other.listen()

        with pytest.raises(PortTaken, match=rf"port {settings.port} .*--broker\.port"):
            start(settings)

    assert not (settings.data_dir / "log").exists()


@pytest.mark.parametrize(
    ("host", "why"),
    [("192.0.2.1", "Cannot assign requested address"), ("no-such-host.invalid", "[Nn]ame")],
    ids=["of another machine", "unknown"],
)
def test_an_address_that_is_not_this_machine_s_is_not_called_taken(
    settings: BrokerSettings, host: str, why: str
) -> None:
    """Another port would not help: the message names the address and what the system says."""
    with pytest.raises(
        SettingsInvalid, match=rf"broker\.host .* cannot listen on {host}:{settings.port}: .*{why}"
    ):
        start(replace(settings, host=host))


def test_only_its_own_user_may_look_into_a_new_folder(settings: BrokerSettings) -> None:
    """Topics are in it, with what users did."""
    stop(settings)

    assert settings.data_dir.stat().st_mode & 0o777 == 0o700


@pytest.mark.parametrize("action", [start, stop])
def test_a_folder_that_cannot_be_made_is_a_wrong_setting(
    settings: BrokerSettings, tmp_path: Path, action: Callable[[BrokerSettings], object]
) -> None:
    """A file stands where a folder above it should be."""
    (tmp_path / "file").write_text("")
    folder = tmp_path / "file" / "broker"

    with pytest.raises(SettingsInvalid, match=rf"broker\.data_dir must be a folder .*{folder}"):
        action(replace(settings, data_dir=folder))


def test_a_broker_that_cannot_start_says_why(settings: BrokerSettings) -> None:
    """The end of Kafka's log stands in the one-line error, and no process is left."""
    (settings.data_dir / "log").mkdir(parents=True)
    (settings.data_dir / "log" / "meta.properties").write_text("version=1\nnode.id=7\n")

    with pytest.raises(
        BrokerUnavailable, match=r"ended while starting.*cluster\.id was not found"
    ) as caught:
        start(settings)

    assert "\n" not in str(caught.value)
    assert kafkas_in(settings.data_dir) == []


def test_a_java_that_is_none_is_refused(settings: BrokerSettings) -> None:
    """The message names the program and the flag."""
    broken = BrokerSettings(data_dir=settings.data_dir, port=settings.port, java=Path("/no/java"))

    with pytest.raises(BrokerUnavailable, match=r"/no/java.*--broker\.java"):
        start(broken)
