"""The store on disk: the contract, its lock, its bounds, and damage done to its files by hand."""

import os
import shutil
import struct
import time
from collections.abc import Callable, Iterator
from pathlib import Path

import pytest
from rocksdict import AccessType, Options, Rdict

from state.errors import StateCorrupt, StateError, StateFormatUnknown, StoreLocked
from state.rocks import RocksOptions, RocksStore
from state.store import StateStore
from tests.refusals import file_size_limit, no_more_than_the_rights_of_files
from tests.store_contract import StoreContract

SMALL = RocksOptions(write_buffer_bytes=2**20, block_cache_bytes=2**20)
USERS = [b"user %05d" % i for i in range(400)]


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """Where the store is to live."""
    return tmp_path / "states"


@pytest.fixture
def store(folder: Path) -> Iterator[RocksStore]:
    """A store with little memory, nothing open."""
    store = RocksStore(folder, SMALL)
    yield store
    store.close_all()


class TestRocksStore(StoreContract):
    """The contract, with RocksDB itself as the medium."""

    @pytest.fixture
    def store(self, store: RocksStore) -> RocksStore:
        """The store on disk."""
        return store

    def stored_rows(self, store: StateStore, partition: int) -> dict[bytes, bytes]:
        """Read the database beside the store."""
        return {key[1:]: row for key, row in self._stored(store, partition) if key[:1] == b"\x01"}

    def stored_position(self, store: StateStore, partition: int) -> int | None:
        """Read the database beside the store."""
        stored = dict(self._stored(store, partition)).get(b"\x00position")
        return stored and struct.unpack("<Bq", stored)[1]

    def place(
        self, store: StateStore, partition: int, rows: dict[bytes, bytes], position: int
    ) -> None:
        """Write a database before the store opens it."""
        with Rdict(self._path(store, partition), Options(raw_mode=True)) as database:
            for key, row in rows.items():
                database[b"\x01" + key] = row
            database[b"\x00position"] = struct.pack("<Bq", 1, position)

    def _stored(self, store: StateStore, partition: int) -> list[tuple[bytes, bytes]]:
        path, read_only = self._path(store, partition), AccessType.read_only(False)
        with Rdict(path, Options(raw_mode=True), access_type=read_only) as database:
            return list(database.items())

    def _path(self, store: StateStore, partition: int) -> str:
        assert isinstance(store, RocksStore)
        return str(store._path / f"partition-{partition}")


def fill(store: RocksStore, *, close: bool = True) -> None:
    """Write 400 users of 1 KB and a position into partition 0, into table files if closed."""
    store.open(0)
    store.write(0, [(user, user * 80) for user in USERS], 11)
    if close:
        store.close(0)


def only(folder: Path, pattern: str) -> Path:
    """The newest file of partition 0 that matches."""
    return max((folder / "partition-0").glob(pattern))


def cut(path: Path) -> None:
    """Keep the first half of a file."""
    os.truncate(path, path.stat().st_size // 2)


def flip(path: Path) -> None:
    """Change one bit in the middle of a file."""
    content = bytearray(path.read_bytes())
    content[len(content) // 2] ^= 1
    path.write_bytes(content)


def garble(path: Path) -> None:
    """Replace a file by something else of the same length."""
    path.write_bytes(b"\xa5" * path.stat().st_size)


@pytest.mark.parametrize(
    ("pattern", "damage"),
    [
        ("MANIFEST-*", cut),
        ("MANIFEST-*", flip),
        ("MANIFEST-*", os.remove),
        ("CURRENT", cut),
        ("CURRENT", garble),
        ("CURRENT", os.remove),
        ("*.sst", cut),
        ("*.sst", os.remove),
    ],
    ids=lambda value: getattr(value, "__name__", value),
)
def test_a_partition_with_damaged_files_does_not_open(
    store: RocksStore, folder: Path, pattern: str, damage: Callable[[Path], None]
) -> None:
    """The error names the folder to remove, and without it the partition starts anew."""
    fill(store)
    damage(only(folder, pattern))

    with pytest.raises(StateCorrupt, match=r"partition-0: .* damaged .* remove this folder"):
        store.open(0)

    assert store.partitions() == set()
    store.destroy(0)
    store.open(0)
    assert store.position(0) is None


@pytest.mark.parametrize("damage", [flip, garble], ids=lambda damage: damage.__name__)
def test_damage_inside_a_table_is_never_read_over(
    store: RocksStore, folder: Path, damage: Callable[[Path], None]
) -> None:
    """Rows that cannot be read are an error for get and scan, never missing rows."""
    fill(store)
    damage(only(folder, "*.sst"))

    def open_and_get() -> None:
        store.open(0)
        store.get(0, USERS)

    def open_and_scan() -> None:
        store.open(0)
        list(store.scan(0))

    for read in (open_and_get, open_and_scan):
        with pytest.raises(StateCorrupt, match=r"partition-0: .* damaged"):
            read()


def test_a_partition_can_be_replaced_where_its_damage_is_caught(
    store: RocksStore, folder: Path
) -> None:
    """An error in flight keeps no file open, so that whoever handles it may start anew."""
    fill(store)
    flip(only(folder, "*.sst"))
    store.open(0)

    try:
        list(store.scan(0))
    except StateCorrupt:
        store.destroy(0)
        store.open(0)

    assert store.position(0) is None


@pytest.mark.parametrize("damage", [cut, flip, garble], ids=lambda damage: damage.__name__)
def test_a_damaged_log_takes_rows_back_together_with_their_position(
    store: RocksStore, folder: Path, tmp_path: Path, damage: Callable[[Path], None]
) -> None:
    """What the write-ahead log lost is lost from its end: the position says what is there."""
    store.open(0)
    for position in range(200):
        store.write(0, [(b"%d" % position, b"row" * 50)], position)
    copy = tmp_path / "copy"
    shutil.copytree(folder, copy)
    damage(only(copy, "*.log"))

    damaged = RocksStore(copy, SMALL)
    damaged.open(0)

    position = damaged.position(0)
    there = 0 if position is None else position + 1
    assert there < 200
    assert {key for key, _ in damaged.scan(0)} == {b"%d" % i for i in range(there)}
    damaged.close_all()


@pytest.mark.parametrize("note", ["", "garbage", "MANIFEST-999999 100\n"])
def test_a_note_that_says_nothing_hinders_nothing(
    store: RocksStore, folder: Path, note: str
) -> None:
    """An empty note after a power cut, or one of a MANIFEST that is gone, is no damage."""
    fill(store)
    (folder / "partition-0" / "manifest-floor").write_text(note)

    store.open(0)

    assert store.position(0) == 11


def test_a_log_that_rocksdb_dropped_since_it_was_noted_is_not_missed(
    store: RocksStore, folder: Path, tmp_path: Path
) -> None:
    """A kill may come between that and the next note: the MANIFEST tells which logs it needs."""
    fill(store)
    store.open(0)
    store.write(0, [(b"user", b"row")], 12)
    copy = tmp_path / "copy"  # what is on disk after a kill
    shutil.copytree(folder, copy)
    note = copy / "partition-0" / "manifest-floor"
    manifest, size, *logs = note.read_text().split()
    note.write_text(" ".join([manifest, size, "000004.log", *logs]))

    after_the_kill = RocksStore(copy, SMALL)
    after_the_kill.open(0)

    assert logs
    assert after_the_kill.position(0) == 12
    after_the_kill.close_all()


def test_a_file_that_does_not_belong_there_is_left_alone(store: RocksStore, folder: Path) -> None:
    """Foreign files neither hinder nor hide what was written."""
    fill(store)
    (folder / "partition-0" / "notes.txt").write_bytes(b"garbage")
    (folder / "notes.txt").write_bytes(b"garbage")

    store.open(0)

    assert store.get(0, USERS) == [user * 80 for user in USERS]
    assert store.position(0) == 11


def test_a_file_in_the_place_of_a_partition_is_named(store: RocksStore, folder: Path) -> None:
    """Something that is no database is an error that names it."""
    (folder / "partition-0").write_bytes(b"garbage")

    with pytest.raises(StateError, match="partition-0"):
        store.open(0)


def test_a_file_in_the_place_of_the_folder_is_named(tmp_path: Path) -> None:
    """A store that cannot have its folder says which."""
    (tmp_path / "states").write_bytes(b"")

    with pytest.raises(StateError, match=r"states: expected a folder"):
        RocksStore(tmp_path / "states")


def test_only_its_own_user_may_look_into_a_new_folder(tmp_path: Path) -> None:
    """Users' histories are in it; one that exists stays as its owner wants it."""
    (tmp_path / "old").mkdir(mode=0o750)

    for name in ("new", "old"):
        RocksStore(tmp_path / name).close_all()

    modes = {folder.name: folder.stat().st_mode & 0o777 for folder in tmp_path.iterdir()}
    assert modes == {"new": 0o700, "old": 0o750}


def test_a_position_of_another_format_is_refused(store: RocksStore, folder: Path) -> None:
    """A position that a newer release wrote is not guessed at."""
    fill(store)
    with Rdict(str(folder / "partition-0"), Options(raw_mode=True)) as database:
        database[b"\x00position"] = struct.pack("<Bq", 2, 11)

    store.open(0)
    with pytest.raises(StateFormatUnknown, match=r"partition-0: expected .* version 1 .* got"):
        store.position(0)


def test_a_full_disk_is_no_corruption(store: RocksStore, folder: Path) -> None:
    """What the operating system refuses is said as such, and rows keep to their position."""
    store.open(0)
    store.write(0, [(b"a", b"before")], 1)
    with (
        file_size_limit(2**16),
        pytest.raises(StateError, match=r"partition-0: the operating system refuses") as info,
    ):
        store.write(0, [(user, user * 80) for user in USERS], 2)
    assert not isinstance(info.value, StateCorrupt)

    with pytest.raises(StateError, match=r"partition-0: the operating system refuses"):
        store.close_all()  # the rows in memory cannot become a table either, but all is released
    store = RocksStore(folder, SMALL)
    store.open(0)
    assert store.position(0) == 1
    assert list(store.scan(0)) == [(b"a", b"before")]
    store.close_all()


@pytest.mark.parametrize("room", [0, 20, 100, 200, 4000])
def test_a_full_disk_at_the_first_open_is_no_corruption(store: RocksStore, room: int) -> None:
    """Whichever file of a new partition cannot be written; with room it opens, empty."""
    with (
        file_size_limit(room),
        pytest.raises(StateError, match=r"partition-0: the operating system refuses: .*see to"),
    ):
        store.open(0)

    store.open(0)
    assert store.position(0) is None


def test_a_full_disk_at_the_start_is_told(folder: Path) -> None:
    """Not even the process id finds room; with room the folder is free."""
    with (
        file_size_limit(0),
        pytest.raises(StateError, match=r"states: expected a folder .*; see to .* room on the"),
    ):
        RocksStore(folder)

    RocksStore(folder).close_all()


@pytest.mark.parametrize("name", ["CURRENT", "IDENTITY", "rocksdict-config.json"])
def test_a_file_that_may_not_be_opened_is_no_damage(
    store: RocksStore, folder: Path, name: str
) -> None:
    """As after a backup that another user restored: nobody is told to remove the folder."""
    fill(store)
    (folder / "partition-0" / name).chmod(0)

    with (
        no_more_than_the_rights_of_files(),
        pytest.raises(StateError, match=r"0: the operating .* Permission denied.*; see to") as info,
    ):
        store.open(0)
    assert not isinstance(info.value, StateCorrupt)

    (folder / "partition-0" / name).chmod(0o644)
    store.open(0)
    assert store.position(0) == 11


def test_a_folder_in_the_place_of_a_file_is_told(store: RocksStore, folder: Path) -> None:
    """Of a file that is rocksdict's own, too."""
    fill(store)
    (folder / "partition-0" / "rocksdict-config.json").unlink()
    (folder / "partition-0" / "rocksdict-config.json").mkdir()

    with pytest.raises(StateError, match=r"partition-0: the operating system refuses: Is a dir"):
        store.open(0)


def test_what_cannot_be_removed_is_told(store: RocksStore, folder: Path) -> None:
    """Neither a partition nor what a crash left of one ends in a traceback."""
    fill(store)
    left = folder / "partition-0.removed"
    (folder / "partition-0").chmod(0o500)

    with no_more_than_the_rights_of_files():
        with pytest.raises(StateError, match=r"partition-0: the operating system refuses"):
            store.destroy(0)
        store.close_all()
        with pytest.raises(StateError, match=r"partition-0.removed: the operating system refuses"):
            RocksStore(folder)

    left.chmod(0o700)
    RocksStore(folder).close_all()
    assert not left.exists()


def test_a_folder_has_one_holder(store: RocksStore, folder: Path) -> None:
    """A second store is refused with the process that holds the folder, until that lets go."""
    with pytest.raises(StoreLocked, match=rf"states is in use by process {os.getpid()}: stop"):
        RocksStore(folder)

    store.close_all()
    other = RocksStore(folder)
    with pytest.raises(StoreLocked):
        store.open(0)
    with pytest.raises(StoreLocked):
        store.destroy(0)
    other.close_all()
    store.open(0)


def test_a_database_that_another_program_holds_is_locked(store: RocksStore, folder: Path) -> None:
    """A foreign holder of the files is not taken for damage."""
    with (
        Rdict(str(folder / "partition-0"), Options(raw_mode=True)),
        pytest.raises(StoreLocked, match=r"partition-0 is in use by another program"),
    ):
        store.open(0)


def test_a_mark_outlives_a_crash_and_the_rows_before_it(
    store: RocksStore, folder: Path, tmp_path: Path
) -> None:
    """What it says of the partition must be there after a kill, as after a logged write."""
    store.open(0)
    store.write(0, [(b"user", b"row")], 3, logged=False)
    store.set_mark(0, b"half restored")
    copy = tmp_path / "copy"  # what is on disk while nothing was closed
    shutil.copytree(folder, copy)

    after_the_kill = RocksStore(copy, SMALL)
    after_the_kill.open(0)

    assert after_the_kill.mark(0) == b"half restored"
    assert after_the_kill.position(0) == 3
    after_the_kill.close_all()


def test_a_removal_that_stops_half_way_leaves_no_partition_behind(
    store: RocksStore, folder: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The files go under another name first: half a database is never opened as a whole one."""
    fill(store)

    def stop(path: Path) -> None:
        next(path.glob("*.sst")).unlink()
        raise KeyboardInterrupt

    with monkeypatch.context() as patch:
        patch.setattr("state.rocks.shutil.rmtree", stop)
        with pytest.raises(KeyboardInterrupt):
            store.destroy(0)

    store.open(0)
    assert store.position(0) is None
    assert list(store.scan(0)) == []


def test_what_a_crash_left_of_a_destroyed_partition_is_removed(folder: Path) -> None:
    """Half a removed database takes no room and is never taken for a whole one."""
    left = folder / "partition-0.removed"
    left.mkdir(parents=True)
    (left / "000001.sst").write_bytes(b"x")

    store = RocksStore(folder)

    assert not left.exists()
    store.close_all()


def test_files_are_released_and_the_cache_is_shared(store: RocksStore, folder: Path) -> None:
    """Close leaves no file open, and a partition that is opened again reads through our cache."""

    def open_files() -> list[str]:
        links = [os.readlink(entry.path) for entry in os.scandir("/proc/self/fd") if entry.name]
        return [link for link in links if str(folder / "partition-") in link]

    fill(store)
    assert open_files() == []

    store.open(0)
    before = store._cache.get_usage()
    store.get(0, USERS)
    assert store._cache.get_usage() > before + 100_000
    assert open_files() != []
    store.close_all()
    assert open_files() == []


def test_rows_in_memory_are_bounded(store: RocksStore) -> None:
    """However many partitions there are, their rows leave memory at the common bound."""
    for partition in range(12):
        store.open(partition)
    for i in range(12):
        for partition in range(12):
            store.write(partition, [(b"%d" % i, b"x" * 10_000)], i)

    deadline_s = time.monotonic() + 10
    while store._write_buffers.get_usage() > SMALL.write_buffer_bytes:
        assert time.monotonic() < deadline_s, "rows stay in memory beyond the bound"
        time.sleep(0.005)
    assert store._write_buffers.get_usage() > SMALL.write_buffer_bytes // 4


@pytest.mark.parametrize("name", ["write_buffer_bytes", "block_cache_bytes", "max_open_files"])
@pytest.mark.parametrize("value", [1, 2**63])
def test_options_refuse_what_cannot_work(name: str, value: int) -> None:
    """The message names the field, the rule and the value."""
    with pytest.raises(ValueError, match=rf"^{name} must be \d+ to \d+, got {value}"):
        RocksOptions(**{name: value})


def test_many_partitions_with_few_rows_stay_in_memory(folder: Path) -> None:
    """The memory for rows is shared by what is in it, not by how many partitions there are."""
    store = RocksStore(folder, RocksOptions(write_buffer_bytes=16 * 2**20))
    for position in range(4):
        for partition in range(64):
            store.open(partition)
            store.write(partition, [(b"user %d" % position, b"x" * 2688)], position)

    assert list(folder.glob("partition-*/*.sst")) == []
    store.close_all()
