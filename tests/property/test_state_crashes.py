"""The store on disk under kill -9, and with two processes: always with real ones."""

import os
import random
import shutil
import subprocess
import sys
import tempfile
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from state.errors import StateCorrupt, StoreLocked
from state.rocks import RocksOptions, RocksStore

SMALL = RocksOptions(write_buffer_bytes=2**20, block_cache_bytes=2**20)  # 128 KB a memtable
USERS = 300
BATCH = 20
PADDING = b"x" * 1000

WRITER = """
import sys
from pathlib import Path
from state.rocks import RocksOptions, RocksStore
from tests.property.test_state_crashes import SMALL, batch

print("opening", flush=True)
store = RocksStore(Path(sys.argv[1]), SMALL)
store.open(0)
position = store.position(0)
n = 0 if position is None else position + 1
every = int(sys.argv[2])  # so many batches in bulk, then one that is logged
while True:
    store.write(0, batch(n), n, logged=n % every == 0)
    print(n, flush=True)
    n += 1
"""


def batch(n: int) -> list[tuple[bytes, bytes | None]]:
    """The n-th batch: changed, new and deleted rows, all of which say n."""
    rows: list[tuple[bytes, bytes | None]] = [
        (b"%d" % ((n * 7 + i) % USERS), b"%d " % n + PADDING) for i in range(BATCH)
    ]
    return [*rows, (b"%d" % (n * 11 % USERS), None)]


def rows_at(position: int | None) -> dict[bytes, bytes]:
    """All rows after the batches up to a position, by a plain dict."""
    rows: dict[bytes, bytes] = {}
    for n in range(-1 if position is None else position + 1):
        for key, row in batch(n):
            if row is None:
                rows.pop(key, None)
            else:
                rows[key] = row
    return rows


@contextmanager
def writer(folder: Path, every: int = 1) -> Iterator["subprocess.Popen[str]"]:
    """A process that writes batch after batch, every n-th logged; killed at the end at least."""
    root = Path(__file__).parents[2]
    command = [sys.executable, "-c", WRITER, str(folder), str(every)]
    with subprocess.Popen(command, cwd=root, stdout=subprocess.PIPE, text=True) as process:
        try:
            yield process
        finally:
            process.kill()


def write_and_kill(folder: Path, *, batches: int, then_s: float, every: int = 1) -> int | None:
    """Let a process open a store and write some batches, kill it a moment later.

    Returns:
        The last batch that it told, None if it told none.
    """
    with writer(folder, every) as process:
        assert process.stdout is not None
        told = [process.stdout.readline() for _ in range(1 + batches)]
        time.sleep(then_s)
        process.kill()
        told += process.stdout.readlines()
    return int(told[-1]) if len(told) > 1 else None


def test_kill_9_never_parts_rows_from_their_position(tmp_path: Path) -> None:
    """After each kill the rows are those of the batches up to the position, none lost, no other."""
    moments = random.Random(20260101)
    for _ in range(5):
        told = write_and_kill(
            tmp_path / "states", batches=moments.randint(1, 400), then_s=moments.random() / 20
        )

        store = RocksStore(tmp_path / "states", SMALL)
        store.open(0)
        position = store.position(0)

        assert told is not None
        assert position in (told, told + 1)  # the last may have been written and not told
        assert dict(store.scan(0)) == rows_at(position)
        store.close_all()


def test_kill_9_among_writes_in_bulk_never_parts_rows_from_their_position(tmp_path: Path) -> None:
    """A crash forgets the newest of them, back to the last logged one at most, and none between."""
    moments = random.Random(20260103)
    for every in (3, 40, 10**9, 40, 10**9, 3):
        told = write_and_kill(
            tmp_path / "states",
            batches=moments.randint(100, 400),
            then_s=moments.random() / 20,
            every=every,
        )

        store = RocksStore(tmp_path / "states", SMALL)
        store.open(0)
        position = store.position(0)

        assert told is not None
        assert position is not None
        assert told // every * every <= position <= told + 1
        assert dict(store.scan(0)) == rows_at(position)
        store.close_all()


def test_kill_9_while_a_store_opens_loses_nothing(tmp_path: Path) -> None:
    """RocksDB replays its log at a start; a start that was cut short is as if it never was."""
    moments = random.Random(20260102)
    before = write_and_kill(tmp_path / "states", batches=100, then_s=0)
    for _ in range(5):
        told = write_and_kill(tmp_path / "states", batches=0, then_s=moments.random() / 40)
        before = told or before

    store = RocksStore(tmp_path / "states", SMALL)
    store.open(0)
    position = store.position(0)

    assert position is not None
    assert before is not None
    assert position >= before
    assert dict(store.scan(0)) == rows_at(position)
    store.close_all()


def test_a_folder_belongs_to_one_process_until_it_is_gone(tmp_path: Path) -> None:
    """A second process is told whose the folder is; kill -9 of the first sets it free at once."""
    with writer(tmp_path) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "opening\n"
        assert process.stdout.readline() == "0\n"

        with pytest.raises(StoreLocked, match=rf"{tmp_path} is in use by process {process.pid}:"):
            RocksStore(tmp_path)

        process.kill()
        process.wait()
        RocksStore(tmp_path).close_all()


def test_a_manifest_cut_after_a_crash_is_not_taken_for_a_younger_one(tmp_path: Path) -> None:
    """Tables that the MANIFEST no longer lists are missed, at whichever entry it ends."""
    told = write_and_kill(tmp_path / "states", batches=400, then_s=0)
    manifest = (tmp_path / "states" / "partition-0" / "CURRENT").read_text().strip()
    shutil.copytree(tmp_path / "states", tmp_path / "cut")
    whole = (tmp_path / "cut" / "partition-0" / manifest).read_bytes()
    floor = (tmp_path / "cut" / "partition-0" / "manifest-floor").read_text().split()
    assert floor[0] == manifest

    for end in range(0, int(floor[1]), 23):
        (tmp_path / "cut" / "partition-0" / manifest).write_bytes(whole[:end])
        damaged = RocksStore(tmp_path / "cut", SMALL)
        with pytest.raises(StateCorrupt, match=rf"partition-0: .* of {manifest}, got {end}\b"):
            damaged.open(0)
        damaged.close_all()

    intact = RocksStore(tmp_path / "states", SMALL)
    intact.open(0)
    assert told is not None
    assert intact.position(0) in (told, told + 1)
    intact.close_all()


def rows_and_position(folder: Path) -> tuple[dict[bytes, bytes], int | None]:
    """What a store finds there.

    Raises:
        StateCorrupt: It does not open.
    """
    store = RocksStore(folder, SMALL)
    try:
        store.open(0)
        return dict(store.scan(0)), store.position(0)
    finally:
        store.close_all()


def unguarded(folder: Path, *, without: list[str]) -> tuple[dict[bytes, bytes], int | None]:
    """What RocksDB alone finds there, where some of its logs are gone."""
    with tempfile.TemporaryDirectory() as name:
        copy = Path(name) / "states"
        shutil.copytree(folder, copy)
        for log in ("manifest-floor", *without):
            (copy / "partition-0" / log).unlink()
        return rows_and_position(copy)


@pytest.mark.parametrize(
    "damage", [lambda log: os.truncate(log, 0), os.remove], ids=["empty", "gone"]
)
def test_a_log_that_was_lost_is_not_read_over(
    tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """A partition is refused where rows below its position are gone, and after no mere kill."""
    moments = random.Random(20260104)
    missed, kills = 0, 0
    while missed < 3:
        kills += 1
        assert kills < 100, "no kill left rows in two logs that were needed"
        write_and_kill(
            tmp_path / "states", batches=moments.randint(1, 60), then_s=moments.random() / 10
        )
        logs = (tmp_path / "states" / "partition-0").glob("*.log")
        used = sorted(log.name for log in logs if log.stat().st_size)
        for number, log in enumerate(used[:-1]):
            shutil.copytree(tmp_path / "states", tmp_path / "damaged")
            damage(tmp_path / "damaged" / "partition-0" / log)
            rows, position = unguarded(tmp_path / "states", without=[log])
            only_here = {
                unguarded(tmp_path / "states", without=later)[1]
                for later in (used[number:], used[number + 1 :])
            }

            if len(only_here) == 1:  # RocksDB was about to drop it
                assert rows == rows_at(position)
                assert rows_and_position(tmp_path / "damaged") == (rows, position)
            else:  # most often; what it holds may also have been written anew by a later one
                missed += rows != rows_at(position)
                with pytest.raises(StateCorrupt, match=rf"partition-0: .* rows in {log}, got none"):
                    rows_and_position(tmp_path / "damaged")
            shutil.rmtree(tmp_path / "damaged")

        rows, position = rows_and_position(tmp_path / "states")
        assert rows == rows_at(position)
