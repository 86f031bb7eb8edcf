"""The state store on disk: one RocksDB for each partition, below one folder.

    <folder>/lock            held by the process that uses the folder, with its process id inside
    <folder>/partition-<n>   the database of partition n

Keys carry one byte in front, so that the position can never meet a user's key. Writes go through
the write-ahead log without fsync: they outlive the process at any moment, but not always the
machine; what a machine loses is the newest batches, positions included, and the changelog has
them. Foreign errors stop here.

Writes in bulk may leave the log out. They lie in memory until RocksDB makes table files of them, in
the order in which they were written, each batch whole; so what a crash leaves is what some earlier
batch left, and its position says which. A logged write behind them would break that: it would come
back from the log without those before it, and its position would promise them. Therefore a logged
write first has RocksDB make its table files.
"""

import fcntl
import os
import shutil
import struct
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import cast

from rocksdict import (
    AccessType,
    BlockBasedOptions,
    Cache,
    DBCompressionType,
    DBRecoveryMode,
    Options,
    Rdict,
    WriteBatch,
    WriteBufferManager,
    WriteOptions,
)

from state.errors import StateCorrupt, StateError, StateFormatUnknown, StoreLocked
from state.manifest import ManifestFloor
from state.store import StoreStats, not_open

_POSITION_KEY = b"\x00position"
_MARK_KEY = b"\x00mark"
_ROW_PREFIX = b"\x01"
_POSITION = struct.Struct("<Bq")  # format version, position
_POSITION_VERSION = 1
# Counts up with each new log and each change of the tables; costs less than a look at the files.
_GENERATION = "rocksdb.current-super-version-number"
_ARENA_BLOCK_BYTES = 64 * 1024  # of memory for rows, taken at once
_SCAN_ROWS = 512  # a time, because an iterator that is alive keeps the files open after close
# Said of what is no damage: by rocksdict of its own files, and by RocksDB of CURRENT.
_REFUSALS = ("(os error ", "Permission denied")
_SEE_TO = "see to the rights of this user there and to room on the disk, then start again"


@dataclass(frozen=True, kw_only=True)
class RocksOptions:
    """Bounds on memory and files.

    Raises:
        ValueError: A bound is out of its range.
    """

    write_buffer_bytes: int = 64 * 2**20
    """Memory for rows that are in no table file yet, all partitions together."""
    block_cache_bytes: int = 64 * 2**20
    """Memory for blocks of table files, their indices and filters, all partitions together."""
    max_open_files: int = 128
    """Files that each partition may hold open."""

    def __post_init__(self) -> None:
        for name, least, most in (
            ("write_buffer_bytes", 2**20, 2**63 - 1),
            ("block_cache_bytes", 2**20, 2**63 - 1),
            ("max_open_files", 16, 2**31 - 1),
        ):
            if not least <= getattr(self, name) <= most:
                msg = f"{name} must be {least} to {most}, got {getattr(self, name)}"
                raise ValueError(msg)


class RocksStore:
    """Rows on disk, in a folder that this store holds until `close_all`.

    Args:
        path: The folder; made if it does not exist, for this user alone.
        options: Bounds on memory and files.

    Raises:
        StoreLocked: Another process, or another store of this one, holds the folder.
        StateError: The folder cannot be made or written.
    """

    def __init__(self, path: Path, options: RocksOptions | None = None) -> None:
        self.stats = StoreStats()
        self._path = path
        self._options = options or RocksOptions()
        self._cache = Cache(self._options.block_cache_bytes)
        self._write_buffers = WriteBufferManager(self._options.write_buffer_bytes, False)
        self._databases: dict[int, Rdict] = {}
        self._floors: dict[int, ManifestFloor] = {}
        self._unlogged: set[int] = set()  # partitions with rows that are in memory alone
        self._without_log = WriteOptions()
        # an attribute, whatever rocksdict's type hints say
        self._without_log.disable_wal = True  # type: ignore[method-assign, assignment]
        self._lock: int | None = None
        self._hold_folder()

    def open(self, partition: int) -> None:
        """Make a partition usable, empty if it never was; nothing happens if it is open.

        Raises:
            StateCorrupt: Its files are damaged; the message says what to do.
            StoreLocked: Something else holds its files.
            StateError: The operating system refuses.
        """
        if partition in self._databases:
            return
        self._hold_folder()
        path = self._folder(partition)
        floor = ManifestFloor(path)
        options = self._database_options()
        complaint = floor.complaint()
        if complaint is not None:
            raise _damaged(path, complaint)
        lost = floor.lost_logs()
        if lost and max(lost) >= (needed := _first_log_needed(path, options)):
            names = ", ".join(name for number, name in sorted(lost.items()) if number >= needed)
            raise _damaged(path, f"expected rows in {names}, got none, though a later log has some")
        with _border(path):
            # Without column_families, rocksdict would prefer the options of the last open,
            # with a block cache of their own.
            self._databases[partition] = Rdict(
                str(path), options, column_families={"default": options}
            )
        self._floors[partition] = floor
        floor.note()

    def close(self, partition: int) -> None:
        """Release a partition's files and keep its rows; nothing happens if it is closed.

        Raises:
            StateError: Rows in memory could not become a table file. The files are released all
                the same, and the rows are in the write-ahead log, or forgotten with their position.
        """
        database = self._databases.pop(partition, None)
        self._unlogged.discard(partition)
        if database is not None:
            with _border(self._folder(partition)):
                database.close()
            self._floors.pop(partition).note()

    def close_all(self) -> None:
        """Close every partition and let go of the folder; `open` takes it again.

        Raises:
            StateError: As of `close`, for one of the partitions; all are closed all the same.
        """
        with ExitStack() as stack:
            stack.callback(self._release_folder)
            for partition in self.partitions():
                stack.callback(self.close, partition)

    def destroy(self, partition: int) -> None:
        """Close a partition, open or not, and remove all of it, the position too.

        Raises:
            StateError: The operating system refuses.
        """
        self.close(partition)
        self._hold_folder()
        path = self._folder(partition)
        with _border(path):
            if path.exists():
                # Under another name first: half a database is never taken for a whole one.
                removed = path.rename(path.with_suffix(".removed"))
                shutil.rmtree(removed)

    def partitions(self) -> set[int]:
        """Return the partitions that are open."""
        return set(self._databases)

    def get(self, partition: int, keys: list[bytes]) -> list[bytes | None]:
        """Return the row of each key, in their order, None where there is none.

        Raises:
            StateCorrupt: The files are damaged where a row lies.
        """
        database = self._opened(partition)
        with _border(self._folder(partition)):
            rows = cast("list[bytes | None]", database.get([_ROW_PREFIX + key for key in keys]))
        self.stats.count_read(rows)
        return rows

    def write(
        self,
        partition: int,
        rows: Iterable[tuple[bytes, bytes | None]],
        position: int | None,
        *,
        logged: bool = True,
    ) -> None:
        """Write rows and the position in one batch; of several rows for one key the last counts."""
        written = list(rows)
        batch = WriteBatch(raw_mode=True)
        for key, row in written:
            if row is None:
                batch.delete(_ROW_PREFIX + key)
            else:
                batch.put(_ROW_PREFIX + key, row)
        if position is not None:
            batch.put(_POSITION_KEY, _POSITION.pack(_POSITION_VERSION, position))
        self._write(partition, batch, logged=logged)
        self.stats.count_written(written)

    def _write(self, partition: int, batch: WriteBatch, *, logged: bool) -> None:
        database = self._opened(partition)
        with _border(self._folder(partition)):
            if not logged:
                self._unlogged.add(partition)
                database.write(batch, self._without_log)
            else:
                if partition in self._unlogged:
                    database.flush()
                    self._unlogged.discard(partition)
                database.write(batch)
            generation = cast("int", database.property_int_value(_GENERATION))
        self._floors[partition].note(generation)

    def mark(self, partition: int) -> bytes | None:
        """Return the caller's own note about the partition, None if there is none."""
        database = self._opened(partition)
        with _border(self._folder(partition)):
            return cast("bytes | None", database.get(_MARK_KEY))

    def set_mark(self, partition: int, mark: bytes | None) -> None:
        """Keep a note about the partition, as durably as a logged write; None removes it."""
        batch = WriteBatch(raw_mode=True)
        if mark is None:
            batch.delete(_MARK_KEY)
        else:
            batch.put(_MARK_KEY, mark)
        self._write(partition, batch, logged=True)

    def position(self, partition: int) -> int | None:
        """Return the position last written, None if there is none.

        Raises:
            StateFormatUnknown: Another release of this program wrote it.
        """
        database = self._opened(partition)
        with _border(self._folder(partition)):
            stored = cast("bytes | None", database.get(_POSITION_KEY))
        if stored is None:
            return None
        if len(stored) != _POSITION.size or stored[0] != _POSITION_VERSION:
            msg = (
                f"{self._folder(partition)}: expected a position of format version "
                f"{_POSITION_VERSION} ({_POSITION.size} bytes), got {stored!r}; run the release "
                f"of this program that wrote it, or a later one"
            )
            raise StateFormatUnknown(msg)
        return int(_POSITION.unpack(stored)[1])

    def scan(self, partition: int) -> Iterator[tuple[bytes, bytes]]:
        """Yield every key and row in the order of their keys.

        Raises:
            StateCorrupt: The files are damaged where a row lies.
            StateError: The partition was closed meanwhile.
        """
        start = _ROW_PREFIX
        while True:
            rows = self._rows_from(partition, start)
            yield from ((key[1:], row) for key, row in rows)
            if len(rows) < _SCAN_ROWS:
                return
            start = rows[-1][0] + b"\x00"

    def _rows_from(self, partition: int, start: bytes) -> list[tuple[bytes, bytes]]:
        """Return the next stored keys and rows, fewer than `_SCAN_ROWS` only at the end."""
        database = self._opened(partition)
        rows: list[tuple[bytes, bytes]] = []
        with _border(self._folder(partition)):
            iterator = database.iter()
            try:
                iterator.seek(start)
                while len(rows) < _SCAN_ROWS and iterator.valid():
                    rows.append((iterator.key(), iterator.value()))
                    iterator.next()
                iterator.status()  # a damaged block ends an iterator as the last row does
            finally:
                del iterator  # an error would keep it alive, and with it the files open
        return rows

    def _opened(self, partition: int) -> Rdict:
        database = self._databases.get(partition)
        if database is None:
            raise not_open(partition, str(self._path), self._databases)
        return database

    def _folder(self, partition: int) -> Path:
        return self._path / f"partition-{partition}"

    def _database_options(self) -> Options:
        blocks = BlockBasedOptions()
        blocks.set_block_cache(self._cache)
        blocks.set_cache_index_and_filter_blocks(True)
        blocks.set_bloom_filter(10, False)
        options = Options(raw_mode=True)
        options.create_if_missing(True)
        options.set_block_based_table_factory(blocks)
        options.set_write_buffer_manager(self._write_buffers)
        options.set_write_buffer_size(self._options.write_buffer_bytes // 8)
        # RocksDB's own is 1 MiB and more: 64 partitions with a row each would fill the memory that
        # they share, and every few writes one of them would make a table file of next to nothing.
        options.set_arena_block_size(_ARENA_BLOCK_BYTES)
        options.set_max_write_buffer_number(2)
        # Rows come in no order of their keys, so each compaction rewrites most of what is there:
        # a third of a restore's work at RocksDB's own 4 files. Writes are slowed down from 20 on.
        options.set_level_zero_file_num_compaction_trigger(12)
        options.set_max_open_files(self._options.max_open_files)
        options.set_compression_type(DBCompressionType.none())  # hidden states do not compress
        # The newest batches may be torn after a power cut; whole ones before them must come back.
        options.set_wal_recovery_mode(DBRecoveryMode.point_in_time())
        options.set_keep_log_file_num(2)
        options.set_max_log_file_size(2**20)
        return options

    def _hold_folder(self) -> None:
        """Take the folder's lock if it is not held, and remove what a crash left behind."""
        if self._lock is not None:
            return
        try:
            # Whatever the umask: in it are users' histories.
            self._path.mkdir(parents=True, exist_ok=True, mode=0o700)
            lock = os.open(self._path / "lock", os.O_RDWR | os.O_CREAT, 0o644)
            try:
                self._take(lock)
                for removed in self._path.glob("partition-*.removed"):
                    with _border(removed):
                        shutil.rmtree(removed)
            except BaseException:
                os.close(lock)
                raise
        except OSError as exc:
            msg = f"{self._path}: expected a folder to keep states in, got {exc}; {_SEE_TO}"
            raise StateError(msg) from exc
        self._lock = lock

    def _take(self, lock: int) -> None:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError as exc:
            holder = os.read(lock, 32).decode(errors="replace").strip() or "unknown"
            msg = (
                f"{self._path} is in use by process {holder}: stop that process, or give this "
                f"one a folder of its own"
            )
            raise StoreLocked(msg) from exc
        os.truncate(lock, 0)
        os.write(lock, f"{os.getpid()}\n".encode())

    def _release_folder(self) -> None:
        if self._lock is not None:
            os.close(self._lock)
            self._lock = None


def _first_log_needed(path: Path, options: Options) -> int:
    """Return the number of the first write-ahead log that the MANIFEST says may not be missing."""
    read_only = AccessType.read_only(False)
    with (
        _border(path),
        Rdict(
            str(path), options, column_families={"default": options}, access_type=read_only
        ) as database,
    ):
        return cast("int", database.property_int_value("rocksdb.min-log-number-to-keep"))


@contextmanager
def _border(path: Path) -> Iterator[None]:
    """Turn what rocksdict raises about a partition's files into errors of this package."""
    try:
        yield
    except Exception as exc:
        # rocksdict raises just Exception for all that RocksDB says, and an OSError of its own files
        if type(exc) is not Exception and not isinstance(exc, OSError):
            raise
        said = " ".join(str(exc).split())
        if "lock hold" in said or "lock file" in said:
            msg = f"{path} is in use by another program: stop it first ({said})"
            raise StoreLocked(msg) from exc
        is_refusal = isinstance(exc, OSError) or any(words in said for words in _REFUSALS)
        if is_refusal or (said.startswith("IO error") and "No such file" not in said):
            msg = f"{path}: the operating system refuses: {said}; {_SEE_TO}"
            raise StateError(msg) from exc
        raise _damaged(path, said) from exc


def _damaged(path: Path, said: str) -> StateCorrupt:
    return StateCorrupt(
        f"{path}: expected the files of a state store, got damaged ones ({said}); stop the "
        f"worker, remove this folder and start again: the partition is then restored from its "
        f"changelog"
    )
