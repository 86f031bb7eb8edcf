"""What the demo holds on to: processes that must run, its folder, what it clears away."""

import os
import threading
import time
from pathlib import Path

import pytest

from pipeline.demo.guard import Guard, own_folder, remove_earlier_run, require_space
from pipeline.errors import BrokerUnavailable, DemoFailed
from tests.refusals import file_size_limit


def test_an_end_interrupts_whatever_the_main_thread_waits_for() -> None:
    """Long before the wait is over; the error says what ended."""
    guard = Guard()
    ended = threading.Event()
    guard.watch("worker", lambda: "the worker has ended" if ended.is_set() else None)
    threading.Timer(0.05, ended.set).start()

    with pytest.raises(DemoFailed, match="the worker has ended"), guard.guarding():
        time.sleep(30)


def test_an_error_that_comes_of_an_end_names_the_end() -> None:
    """A Kafka that is gone is first heard of by those who ask it."""
    guard = Guard()
    guard.watch("Kafka", lambda: "Kafka has ended")

    with pytest.raises(DemoFailed, match="Kafka has ended"), guard.guarding():
        raise BrokerUnavailable("no answer")


def test_an_error_that_comes_of_nothing_else_stays_itself() -> None:
    """So does Ctrl-C, while everything runs, and the end of what is not watched any more."""
    for error in (BrokerUnavailable("no answer"), KeyboardInterrupt()):
        guard = Guard()
        guard.watch("worker", lambda: "the worker has ended")
        guard.let_go("worker")

        with pytest.raises(type(error)), guard.guarding():
            raise error


def test_one_demo_at_a_time_in_a_folder(tmp_path: Path) -> None:
    """The second is told whose it is; after the first the folder is free."""
    folder = tmp_path / "a" / "demo"

    second = own_folder(folder)
    message = rf"another demo .* \(process {os.getpid()}\)"

    with own_folder(folder), pytest.raises(DemoFailed, match=message):
        second.__enter__()

    with own_folder(folder):
        pass


def test_a_folder_that_cannot_be_is_refused(tmp_path: Path) -> None:
    """Here a file is in the way."""
    (tmp_path / "file").touch()

    with pytest.raises(DemoFailed, match="expected a folder that can be written"):
        own_folder(tmp_path / "file" / "demo").__enter__()


def test_a_demo_that_filled_the_disk_can_be_run_again(tmp_path: Path) -> None:
    """The lock holds where its owner cannot be noted: what takes the room is removed behind it."""
    with (
        file_size_limit(0),
        own_folder(tmp_path),
        pytest.raises(DemoFailed, match=r"process unknown"),
    ):
        own_folder(tmp_path).__enter__()


def test_what_an_earlier_run_left_is_removed(tmp_path: Path) -> None:
    """Folders with what is in them, and files; what is not there is no error."""
    (tmp_path / "broker/log").mkdir(parents=True)
    (tmp_path / "broker/log/0.log").write_text("events")
    (tmp_path / "worker.log").write_text("lines")
    (tmp_path / "lock").write_text("1")

    remove_earlier_run([tmp_path / name for name in ("broker", "worker.log", "releases")])

    assert [path.name for path in tmp_path.iterdir()] == ["lock"]


def test_a_disk_that_is_too_small_is_refused_at_the_start(tmp_path: Path) -> None:
    """With what is needed and what there is."""
    require_space(tmp_path, 0)

    with pytest.raises(DemoFailed, match=r"expected [\d,]+ MiB free .* got [\d,]+ MiB"):
        require_space(tmp_path, 10**15)
