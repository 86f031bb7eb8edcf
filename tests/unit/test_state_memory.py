"""The store in memory keeps the contract, so that it may stand in for the one on disk."""

import pytest

from state.memory import MemoryStore
from state.store import StateStore
from tests.store_contract import StoreContract


class TestMemoryStore(StoreContract):
    """The contract, with its dictionaries as the medium."""

    @pytest.fixture
    def store(self) -> MemoryStore:
        """A new store."""
        return MemoryStore()

    def stored_rows(self, store: StateStore, partition: int) -> dict[bytes, bytes]:
        """Look into the dictionary."""
        assert isinstance(store, MemoryStore)
        return store._rows[partition]

    def stored_position(self, store: StateStore, partition: int) -> int | None:
        """Look into the dictionary."""
        assert isinstance(store, MemoryStore)
        return store._positions.get(partition)

    def place(
        self, store: StateStore, partition: int, rows: dict[bytes, bytes], position: int
    ) -> None:
        """Fill the dictionaries."""
        assert isinstance(store, MemoryStore)
        store._rows[partition] = dict(rows)
        store._positions[partition] = position
