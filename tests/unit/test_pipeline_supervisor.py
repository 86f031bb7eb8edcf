"""What a supervisor is made of: settings by process, exits, channel, verdicts, folder."""

import os
import socket
import struct
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor
from multiprocessing.connection import Connection
from pathlib import Path
from unittest.mock import Mock

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.commands.worker import Command
from pipeline.engine.stop import ExitCode
from pipeline.errors import SettingsInvalid
from pipeline.settings import KafkaSettings, Settings, WorkerSettings, parse_command
from pipeline.worker import supervisor
from pipeline.worker.channel import (
    HEALTH,
    METRICS,
    READY,
    ProcessEnd,
    SupervisorEnd,
    decode_verdict,
    encode_verdict,
)
from pipeline.worker.exits import MEANINGS, is_final, meaning, pause_after
from pipeline.worker.folder_lock import lock_folder
from pipeline.worker.merged_pages import merged_verdict
from pipeline.worker.supervisor import Supervisor, settings_of_process, usable_cores
from state.errors import StateError, StoreLocked
from tests.refusals import file_size_limit


def test_the_supervisor_is_light() -> None:
    """Neither torch nor Faust is imported by it: it would cost memory and seconds for nothing."""
    code = "import sys, pipeline.worker.supervisor; print({'torch', 'faust'} & sys.modules.keys())"

    said = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert said.stdout.strip() == "set()"


def test_less_than_one_process_is_refused() -> None:
    """As a wrong setting is."""
    with pytest.raises(SettingsInvalid, match="--processes must be at least 1, got 0"):
        parse_command(Command, ["--processes", "0"], prog="lrurec worker", environ={})


def test_a_drain_as_long_as_the_rebalance_is_refused() -> None:
    """The group would throw out a worker that is only busy."""
    flags = ["--worker.drain-timeout-s", "5", "--kafka.rebalance-timeout-s"]
    message = (
        r"worker\.drain_timeout_s must be less than kafka\.rebalance_timeout_s \(5\.0\), got 5\.0"
    )
    with pytest.raises(SettingsInvalid, match=message):
        parse_command(Command, [*flags, "5"], prog="lrurec worker", environ={})

    parse_command(Command, [*flags, "5.1"], prog="lrurec worker", environ={})


@given(processes=st.integers(2, 64), given_threads=st.none() | st.integers(1, 64))
def test_processes_share_all_settings_but_what_must_be_their_own(
    processes: int, given_threads: int | None
) -> None:
    """Folder and fixed name differ, the machine's threads are divided, no port is opened twice."""
    settings = Settings(
        worker=WorkerSettings(data_dir=Path("data"), threads=given_threads),
        kafka=KafkaSettings(group_instance_id="w"),
    )

    of = [settings_of_process(settings, number, processes) for number in range(processes)]

    assert [str(one.worker.data_dir) for one in of] == [
        f"data/process-{number}" for number in range(processes)
    ]
    assert [one.kafka.group_instance_id for one in of] == [f"w-{n}" for n in range(processes)]
    threads = {one.worker.threads for one in of}
    assert threads == {given_threads or max(1, usable_cores() // processes)}
    assert {one.metrics.port for one in of} == {0}
    assert {one.worker.app_id for one in of} == {settings.worker.app_id}
    without = settings_of_process(Settings(), 1, processes)
    assert without.kafka.group_instance_id is None


# --- exits


@pytest.mark.parametrize("code", [0, 1, 2, *ExitCode])
def test_every_exit_code_has_a_meaning(code: int) -> None:
    """The line about an end says more than a number."""
    assert code in MEANINGS
    assert meaning(code) == f"exit code {int(code)}: {MEANINGS[code]}"


def test_a_signal_is_named() -> None:
    """As an operator knows it."""
    assert meaning(-9) == "killed by SIGKILL"
    assert meaning(-36) == "killed by signal 36"  # a real-time one, which has no name


@pytest.mark.parametrize("code", [2, ExitCode.TOPICS, ExitCode.NAME_TAKEN])
def test_what_a_restart_cannot_help_is_final(code: int) -> None:
    """Settings, topics and names stay wrong until somebody changes them."""
    assert is_final(code, was_ready=True)


@pytest.mark.parametrize("code", sorted({0, 1, -9, -11, *ExitCode} - {80, 81}))
def test_anything_else_is_tried_again_once_it_was_right(code: int) -> None:
    """A start that was through shows that it can be."""
    assert not is_final(code, was_ready=True)


@pytest.mark.parametrize(
    ("code", "final"),
    [(1, True), (70, True), (0, False), (-9, False), (ExitCode.STALLED, False)],
)
def test_an_error_before_a_first_start_is_final(code: int, final: bool) -> None:
    """One process would have ended with it; a signal or a vain wait tells of no setting."""
    assert is_final(code, was_ready=False) is final


def test_pauses_grow_and_begin_anew_after_a_long_run() -> None:
    """A process that ends again and again costs little; one that worked is missed only shortly."""
    pauses_s = [0.0]
    for _ in range(7):
        pauses_s.append(pause_after(pauses_s[-1], ran_s=10.0))

    assert pauses_s[1:] == [1.0, 2.0, 4.0, 8.0, 16.0, 30.0, 30.0]
    assert pause_after(30.0, ran_s=60.0) == 1.0


# --- channel


@pytest.fixture
def ends() -> Iterator[Callable[..., tuple[SupervisorEnd, ProcessEnd, threading.Event]]]:
    """Both ends in this process, the second on a descriptor of its own, as if inherited."""
    opened: list[SupervisorEnd] = []

    def connect(
        answers: dict[bytes, Callable[[], bytes]],
    ) -> tuple[SupervisorEnd, ProcessEnd, threading.Event]:
        alone = threading.Event()
        supervisor = SupervisorEnd()
        opened.append(supervisor)
        process = ProcessEnd(os.dup(supervisor.child_descriptor), answers, alone.set)
        supervisor.handed_over()
        return supervisor, process, alone

    yield connect
    for end in opened:
        end.close()


def test_questions_are_answered_until_the_supervisor_is_gone(
    ends: Callable[..., tuple[SupervisorEnd, ProcessEnd, threading.Event]],
) -> None:
    """The word that the start is through comes in between and is no answer."""
    page = b"x" * 1_000_000
    answers = {METRICS: lambda: page, HEALTH: lambda: encode_verdict(False, "no =")}
    supervisor, process, alone = ends(answers)

    assert not supervisor.has_started()
    process.say_started()

    assert supervisor.ask(METRICS, 5) == page
    verdict = supervisor.ask(HEALTH, 5)
    assert verdict is not None
    assert decode_verdict(verdict) == (False, "no =")
    assert supervisor.has_started()
    assert not alone.is_set()
    supervisor.close()
    assert alone.wait(5)
    assert supervisor.ask(METRICS, 0.1) is None


def test_an_answer_that_fails_ends_nothing(
    ends: Callable[..., tuple[SupervisorEnd, ProcessEnd, threading.Event]],
    caplog: pytest.LogCaptureFixture,
) -> None:
    """It is empty, which is no good health, and logged; the supervisor's end is noticed as ever."""
    supervisor, _, alone = ends({METRICS: lambda: b"page", HEALTH: lambda: bytes(1 // 0)})

    assert supervisor.ask(HEALTH, 5) == b""
    assert decode_verdict(b"")[0] is False
    assert supervisor.ask(METRICS, 5) == b"page"
    assert "ZeroDivisionError" in caplog.text
    supervisor.close()
    assert alone.wait(5)


def test_an_answer_that_comes_too_late_is_not_the_next_question_s(
    ends: Callable[..., tuple[SupervisorEnd, ProcessEnd, threading.Event]],
) -> None:
    """A process that stood still is told from one that answers, and answers right again."""
    go = threading.Event()

    def slow() -> bytes:
        go.wait(5)
        return b"page"

    supervisor, _, _ = ends({METRICS: slow, HEALTH: lambda: b"1fine"})

    assert supervisor.ask(METRICS, 0.05) is None
    assert supervisor.ask(HEALTH, 0.05) is None
    go.set()

    assert supervisor.ask(HEALTH, 5) == b"1fine"


def test_a_process_that_stands_still_within_an_answer_keeps_nobody_waiting() -> None:
    """Half a page has come: questions go unanswered in time, and nothing else has to wait."""
    supervisor = SupervisorEnd()
    process = socket.socket(fileno=os.dup(supervisor.child_descriptor))
    supervisor.handed_over()
    with process, ThreadPoolExecutor(3) as askers:
        process.sendall(struct.pack("!i", 1_000_000) + b"=" + b"x" * 1000)
        began_s = time.monotonic()

        answers = list(askers.map(lambda one: supervisor.ask(one, 0.2), [METRICS, HEALTH, READY]))

        assert answers == [None, None, None]
        assert not supervisor.has_started()
        supervisor.close()
        assert time.monotonic() - began_s < 5
        while process.recv(4096):  # then the question, and the end
            pass


def test_what_an_ended_process_said_last_is_heard() -> None:
    """Whether its start was through decides whether it is started again."""
    for _ in range(20):
        supervisor = SupervisorEnd()
        process = Connection(os.dup(supervisor.child_descriptor))
        supervisor.handed_over()
        process.send_bytes(b"started")
        process.close()

        supervisor.close()

        assert supervisor.has_started()


def test_a_process_that_stands_still_slows_no_request_beyond_its_deadline(
    monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    """However many ask at once: each waits for it as long as the first."""
    monkeypatch.setattr(supervisor, "ANSWER_DEADLINE_S", 0.2)
    own = Supervisor(Settings(worker=WorkerSettings(data_dir=tmp_path)), 2, lock=0)
    go, n_requests = threading.Event(), 30
    answers = [lambda: bytes(go.wait(10)), lambda: encode_verdict(True, "fine")]
    for child, answer in zip(own._children, answers, strict=True):
        channel = SupervisorEnd()
        ProcessEnd(os.dup(channel.child_descriptor), {HEALTH: answer}, lambda: None).say_started()
        channel.handed_over()
        child._running = Mock(), channel

    with ThreadPoolExecutor(n_requests) as clients:
        began_s = time.monotonic()
        said = set(clients.map(lambda _: own.alive(), range(n_requests)))
        took_s = time.monotonic() - began_s

    go.set()
    assert said == {(False, "process 0: does not answer; process 1: fine")}
    assert took_s < 1.5  # one after the other, 3 s
    for child in own._children:
        assert child._running is not None
        child._running[1].close()


# --- verdicts


def test_a_verdict_is_yes_only_where_all_say_yes() -> None:
    """And says which one does not."""
    assert merged_verdict({0: (True, "a"), 1: (True, "b")}) == (True, "process 0: a; process 1: b")
    assert merged_verdict({0: (True, "a"), 1: (False, "down")})[0] is False


# --- folder


def test_a_folder_has_one_supervisor(tmp_path: Path) -> None:
    """The second is refused at once and told who holds it; afterwards the folder is free."""
    with lock_folder(tmp_path / "data", 60):
        began_s = time.monotonic()
        with (
            pytest.raises(StoreLocked, match=f"process {os.getpid()} .*--worker.data-dir"),
            lock_folder(tmp_path / "data", 60),
        ):
            pass
        assert time.monotonic() - began_s < 1

    with lock_folder(tmp_path / "data", 0):
        pass


def test_processes_of_a_dead_supervisor_are_waited_for(tmp_path: Path) -> None:
    """They inherited the lock, and the process whose number stands in it is gone."""
    with subprocess.Popen([sys.executable, "-c", ""]) as dead:
        pass
    with lock_folder(tmp_path, 0) as lock:
        os.ftruncate(lock, 0)
        os.pwrite(lock, str(dead.pid).encode(), 0)
        orphan = subprocess.Popen(["sleep", "0.3"], pass_fds=(lock,))

    with orphan, lock_folder(tmp_path, 10):
        assert orphan.wait(0.2) == 0


def test_a_folder_that_cannot_be_made_is_told(tmp_path: Path) -> None:
    """In the words that one worker uses."""
    (tmp_path / "file").touch()

    with (
        pytest.raises(StateError, match="expected a folder to keep states in"),
        lock_folder(tmp_path / "file" / "data", 0),
    ):
        pass


def test_a_full_disk_is_told(tmp_path: Path) -> None:
    """Where not even the process id finds room; with room the folder is free."""
    with (
        file_size_limit(0),
        pytest.raises(StateError, match=r"data: expected a folder .*; see to .* room on the disk"),
        lock_folder(tmp_path / "data", 0),
    ):
        pass

    with lock_folder(tmp_path / "data", 0):
        pass
