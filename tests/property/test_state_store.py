"""Every store against a dict, under any order of what may be done to it."""

import shutil
import tempfile
from pathlib import Path

from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import (
    RuleBasedStateMachine,
    initialize,
    invariant,
    precondition,
    rule,
)

from state.memory import MemoryStore
from state.rocks import RocksOptions, RocksStore
from state.store import StateStore
from tests.strategies import stored_rows, user_keys

partitions = st.integers(0, 2)


class StoreMachine(RuleBasedStateMachine):
    """A store and dicts go through the same steps and must always hold the same."""

    def __init__(self) -> None:
        super().__init__()
        self.rows: dict[int, dict[bytes, bytes]] = {}
        self.positions: dict[int, int] = {}
        self.marks: dict[int, bytes] = {}
        self.open: set[int] = set()

    def create(self) -> StateStore:
        """Make the store."""
        raise NotImplementedError

    def reopened(self) -> StateStore:
        """Return the store as a program finds it that starts again."""
        raise NotImplementedError

    @initialize()
    def start(self) -> None:
        """Begin with nothing."""
        self.store = self.create()

    @rule(partition=partitions)
    def open_partition(self, partition: int) -> None:
        """Open one, or do it again."""
        self.store.open(partition)
        self.open.add(partition)
        self.rows.setdefault(partition, {})

    @rule(partition=partitions)
    def close_partition(self, partition: int) -> None:
        """Close one, open or not."""
        self.store.close(partition)
        self.open.discard(partition)

    @rule()
    def start_again(self) -> None:
        """Stop the program and start it again."""
        self.store.close_all()
        self.store = self.reopened()
        self.open.clear()

    @rule(partition=partitions)
    def destroy(self, partition: int) -> None:
        """Remove one, open or not."""
        self.store.destroy(partition)
        self.open.discard(partition)
        self.rows.pop(partition, None)
        self.positions.pop(partition, None)
        self.marks.pop(partition, None)

    @precondition(lambda self: self.open)
    @rule(
        data=st.data(),
        batch=st.lists(st.tuples(user_keys, stored_rows), max_size=12),
        position=st.none() | st.integers(-(2**63), 2**63 - 1),
        logged=st.booleans(),
    )
    def write(
        self,
        data: st.DataObject,
        batch: list[tuple[bytes, bytes | None]],
        position: int | None,
        logged: bool,
    ) -> None:
        """Write a batch into an open one, in bulk or not."""
        partition = data.draw(st.sampled_from(sorted(self.open)))
        self.store.write(partition, batch, position, logged=logged)
        for key, row in batch:
            if row is None:
                self.rows[partition].pop(key, None)
            else:
                self.rows[partition][key] = row
        if position is not None:
            self.positions[partition] = position

    @precondition(lambda self: self.open)
    @rule(data=st.data(), mark=st.none() | st.binary(max_size=40))
    def set_mark(self, data: st.DataObject, mark: bytes | None) -> None:
        """Note something about an open one, or nothing any more."""
        partition = data.draw(st.sampled_from(sorted(self.open)))
        self.store.set_mark(partition, mark)
        if mark is None:
            self.marks.pop(partition, None)
        else:
            self.marks[partition] = mark

    @precondition(lambda self: self.open)
    @rule(data=st.data(), keys=st.lists(user_keys, max_size=12))
    def get(self, data: st.DataObject, keys: list[bytes]) -> None:
        """Ask an open one for keys."""
        partition = data.draw(st.sampled_from(sorted(self.open)))
        expected = [self.rows[partition].get(key) for key in keys]
        assert self.store.get(partition, keys) == expected

    @invariant()
    def holds_the_same(self) -> None:
        """All rows, in order, and the positions and marks of all that is open."""
        assert self.store.partitions() == self.open
        for partition in self.open:
            assert list(self.store.scan(partition)) == sorted(self.rows[partition].items())
            assert self.store.position(partition) == self.positions.get(partition)
            assert self.store.mark(partition) == self.marks.get(partition)


class MemoryStoreMachine(StoreMachine):
    """The store in memory."""

    def create(self) -> StateStore:
        """Make the store."""
        return MemoryStore()

    def reopened(self) -> StateStore:
        """Memory outlives no program: the same store goes on."""
        return self.store


class RocksStoreMachine(StoreMachine):
    """The store on disk, with memory for so few rows that they move to table files."""

    OPTIONS = RocksOptions(write_buffer_bytes=2**20, block_cache_bytes=2**20)

    def create(self) -> StateStore:
        """Make the store in a folder of its own."""
        self.folder = Path(tempfile.mkdtemp(prefix="lrurec-states-"))
        return RocksStore(self.folder, self.OPTIONS)

    def reopened(self) -> StateStore:
        """Make a store over the same folder."""
        return RocksStore(self.folder, self.OPTIONS)

    def teardown(self) -> None:
        """Remove the folder."""
        self.store.close_all()
        shutil.rmtree(self.folder)


TestMemoryStoreLikeADict = MemoryStoreMachine.TestCase
TestRocksStoreLikeADict = RocksStoreMachine.TestCase
TestRocksStoreLikeADict.settings = settings(max_examples=20)
