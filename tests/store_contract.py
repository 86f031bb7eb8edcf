"""What every StateStore must do, as tests. A store's own test class inherits StoreContract.

The three raw accessors at its top are the oracle: they go around the store, so that what it reads
and writes is checked against the medium and not against itself.
"""

from collections.abc import Callable, Iterator
from concurrent.futures import ThreadPoolExecutor

import pytest

from state.errors import StateError
from state.store import StateStore, StoreStats

HOSTILE_KEYS = [b"", b"\x00", b"\x00position", b"\x01", b"\x01\x00position", b"user", b"\xff" * 9]


class StoreContract:
    """Tests of one store; subclasses give the fixture `store` and the raw accessors."""

    @pytest.fixture
    def store(self) -> StateStore:
        """A new store, nothing open."""
        raise NotImplementedError

    def stored_rows(self, store: StateStore, partition: int) -> dict[bytes, bytes]:
        """Rows on the medium, read without the store."""
        raise NotImplementedError

    def stored_position(self, store: StateStore, partition: int) -> int | None:
        """Position on the medium, read without the store."""
        raise NotImplementedError

    def place(
        self, store: StateStore, partition: int, rows: dict[bytes, bytes], position: int
    ) -> None:
        """Put rows and a position on the medium of a closed partition without the store."""
        raise NotImplementedError

    def test_a_new_partition_is_empty(self, store: StateStore) -> None:
        """Nothing is there before the first write."""
        store.open(3)

        assert store.get(3, [b"user"]) == [None]
        assert store.position(3) is None
        assert list(store.scan(3)) == []

    def test_what_is_written_lies_on_the_medium(self, store: StateStore) -> None:
        """Rows and position arrive where the raw accessors find them."""
        store.open(0)
        store.write(0, [(b"a", b"1"), (b"b", b"")], 41)

        assert self.stored_rows(store, 0) == {b"a": b"1", b"b": b""}
        assert self.stored_position(store, 0) == 41

    def test_rows_are_whole_for_one_who_reads_while_they_are_written(
        self, store: StateStore
    ) -> None:
        """The stream reads in one thread and writes in another; no read sees half a row."""
        store.open(0)
        keys = [b"user-%d" % i for i in range(20)]
        writes = 300

        def write_all() -> None:
            for n in range(1, writes + 1):
                store.write(0, [(key, b"%06d" % n * 50) for key in keys], n)

        with ThreadPoolExecutor(1) as pool:
            writing = pool.submit(write_all)
            newest = 0
            while newest < writes:
                rows = [row for row in store.get(0, keys) if row is not None]
                assert all(row == row[:6] * 50 for row in rows)
                seen = max((int(row[:6]) for row in rows), default=0)
                assert seen >= newest
                newest = seen
                if writing.done():
                    writing.result()

        assert store.position(0) == writes
        assert store.stats.rows_written == writes * len(keys)

    def test_what_lies_on_the_medium_is_read(self, store: StateStore) -> None:
        """Get, scan and position tell what is there, whoever put it."""
        self.place(store, 0, {b"b": b"2", b"a": b"1"}, 7)

        store.open(0)

        assert store.get(0, [b"a", b"b"]) == [b"1", b"2"]
        assert list(store.scan(0)) == [(b"a", b"1"), (b"b", b"2")]
        assert store.position(0) == 7

    def test_get_answers_in_the_order_of_the_keys(self, store: StateStore) -> None:
        """Unknown keys are None in their place, and a key may be asked twice."""
        store.open(0)
        store.write(0, [(b"a", b"1"), (b"b", b"2")], None)

        assert store.get(0, [b"b", b"x", b"a", b"b"]) == [b"2", None, b"1", b"2"]
        assert store.get(0, []) == []

    def test_an_empty_row_is_a_row(self, store: StateStore) -> None:
        """No bytes are not the same as no row."""
        store.open(0)
        store.write(0, [(b"a", b"")], None)

        assert store.get(0, [b"a", b"b"]) == [b"", None]
        assert list(store.scan(0)) == [(b"a", b"")]

    def test_any_bytes_are_a_key_and_none_meets_the_position(self, store: StateStore) -> None:
        """Keys that look like the store's own entries are users like others."""
        store.open(0)
        store.write(0, [], 5)
        store.write(0, [(key, b"row of " + key) for key in HOSTILE_KEYS], None)

        assert store.position(0) == 5
        assert store.get(0, HOSTILE_KEYS) == [b"row of " + key for key in HOSTILE_KEYS]
        assert [key for key, _ in store.scan(0)] == sorted(HOSTILE_KEYS)

        store.write(0, [(key, None) for key in HOSTILE_KEYS], None)

        assert store.position(0) == 5
        assert list(store.scan(0)) == []

    def test_none_deletes_a_row(self, store: StateStore) -> None:
        """A deleted row is gone from the medium; deleting what is not there is no error."""
        store.open(0)
        store.write(0, [(b"a", b"1"), (b"b", b"2")], None)
        store.write(0, [(b"a", None), (b"never", None)], None)

        assert store.get(0, [b"a", b"b"]) == [None, b"2"]
        assert self.stored_rows(store, 0) == {b"b": b"2"}

    def test_the_last_of_several_rows_for_one_key_counts(self, store: StateStore) -> None:
        """A batch acts as if its rows were written one after the other."""
        store.open(0)
        store.write(0, [(b"a", b"1"), (b"a", b"2"), (b"b", b"1"), (b"b", None)], None)
        store.write(0, [(b"c", None), (b"c", b"3")], None)

        assert list(store.scan(0)) == [(b"a", b"2"), (b"c", b"3")]

    @pytest.mark.parametrize("position", [0, -1, 2**63 - 1, -(2**63)])
    def test_a_position_is_any_signed_64_bit_number(self, store: StateStore, position: int) -> None:
        """Also those that are easily taken for none."""
        store.open(0)
        store.write(0, [], position)

        assert store.position(0) == position

    def test_a_write_without_a_position_keeps_the_old_one(self, store: StateStore) -> None:
        """None does not reset it, and it may go back."""
        store.open(0)
        store.write(0, [(b"a", b"1")], 9)
        store.write(0, [(b"a", b"2")], None)
        assert store.position(0) == 9

        store.write(0, [], 4)
        assert store.position(0) == 4

    def test_partitions_know_nothing_of_each_other(self, store: StateStore) -> None:
        """The same key is another row in another partition."""
        for partition in (0, 1, 12):
            store.open(partition)
        store.write(0, [(b"a", b"0")], 10)
        store.write(1, [(b"a", b"1")], 11)

        assert store.get(1, [b"a"]) == [b"1"]
        assert (store.position(0), store.position(1), store.position(12)) == (10, 11, None)
        assert list(store.scan(12)) == []

    def test_a_batch_that_fails_midway_changes_nothing(self, store: StateStore) -> None:
        """Rows are taken from any iterable, and all of it or nothing is written."""

        def rows() -> Iterator[tuple[bytes, bytes | None]]:
            yield b"a", b"new"
            msg = "the source of the rows failed"
            raise RuntimeError(msg)

        store.open(0)
        store.write(0, [(b"a", b"old")], 1)

        with pytest.raises(RuntimeError, match="source of the rows"):
            store.write(0, rows(), 2)

        assert store.get(0, [b"a"]) == [b"old"]
        assert store.position(0) == 1

    def test_opening_twice_changes_nothing(self, store: StateStore) -> None:
        """An open partition stays as it is."""
        store.open(0)
        store.write(0, [(b"a", b"1")], 1)
        store.open(0)

        assert store.get(0, [b"a"]) == [b"1"]
        assert store.partitions() == {0}

    def test_rows_outlive_close(self, store: StateStore) -> None:
        """Close and open again, right away: rows and position are there."""
        store.open(0)
        store.write(0, [(b"a", b"1")], 1)
        for _ in range(3):
            store.close(0)
            store.open(0)

        assert list(store.scan(0)) == [(b"a", b"1")]
        assert store.position(0) == 1

    @pytest.mark.parametrize(
        "use",
        [
            lambda store: store.get(1, [b"a"]),
            lambda store: store.write(1, [(b"a", b"1")], 1),
            lambda store: store.position(1),
            lambda store: next(store.scan(1)),
        ],
        ids=["get", "write", "position", "scan"],
    )
    def test_a_closed_partition_refuses_use(
        self, store: StateStore, use: Callable[[StateStore], object]
    ) -> None:
        """The message names the partition and those that are open."""
        for partition in (0, 1, 2):
            store.open(partition)
        store.close(1)

        with pytest.raises(StateError, match=r"partition 1 of .*: expected .* open, got \[0, 2\]"):
            use(store)

    def test_closing_what_is_closed_is_nothing(self, store: StateStore) -> None:
        """Close may come twice, and for a partition that never was."""
        store.open(0)
        store.close(0)
        store.close(0)
        store.close(7)

        assert store.partitions() == set()

    def test_close_all_closes_all(self, store: StateStore) -> None:
        """Nothing is open afterwards, everything is there after the next open."""
        for partition in (0, 5):
            store.open(partition)
            store.write(partition, [(b"a", b"1")], partition)
        assert store.partitions() == {0, 5}

        store.close_all()
        store.close_all()
        assert store.partitions() == set()

        store.open(5)
        assert store.position(5) == 5

    @pytest.mark.parametrize("is_open", [True, False], ids=["open", "closed"])
    def test_destroy_removes_rows_and_position(self, store: StateStore, is_open: bool) -> None:
        """A destroyed partition starts anew; others keep what they have."""
        for partition in (0, 1):
            store.open(partition)
            store.write(partition, [(b"a", b"1")], 1)
        if not is_open:
            store.close(0)

        store.destroy(0)
        store.destroy(0)

        assert store.partitions() == {1}
        store.open(0)
        assert list(store.scan(0)) == []
        assert store.position(0) is None
        assert store.get(1, [b"a"]) == [b"1"]

    def test_a_scan_is_whole_and_in_order(self, store: StateStore) -> None:
        """However many rows there are, each comes once."""
        rows = {b"%05d" % (i * 7919 % 1500): b"%d" % i for i in range(1500)}
        store.open(0)
        store.write(0, rows.items(), 1)

        assert list(store.scan(0)) == sorted(rows.items())

    def test_writes_do_not_disturb_a_scan(self, store: StateStore) -> None:
        """Rows that nobody touched are seen once each, whatever happens to the others."""
        store.open(0)
        store.write(0, [(b"%05d" % i, b"old") for i in range(1500)], None)

        seen = []
        for n, (key, _) in enumerate(store.scan(0)):
            seen.append(key)
            touched = b"%05d" % (n * 2)  # even ones, at the scan and before it
            store.write(0, [(touched, None if n % 3 else b"new"), (b"a%05d" % n, b"new")], None)
            if n == 1500:
                break

        odd = [key for key in seen if key < b"a" and int(key) % 2]
        assert odd == [b"%05d" % i for i in range(1, 1500, 2)]
        assert len(seen) == len(set(seen))

    def test_closing_ends_a_scan_with_an_error(self, store: StateStore) -> None:
        """A scan that cannot go on does not pass for a finished one, and does not hinder close."""
        store.open(0)
        store.write(0, [(b"%05d" % i, b"row") for i in range(1500)], None)
        scan = store.scan(0)
        next(scan)

        store.close(0)
        with pytest.raises(StateError, match="partition 0"):
            list(scan)

        store.open(0)
        assert len(list(store.scan(0))) == 1500

    def test_what_was_done_is_counted(self, store: StateStore) -> None:
        """Statistics count rows, misses, bytes and batches, and failed batches not."""
        store.open(0)
        store.write(0, [(b"a", b"123"), (b"bc", b"")], 1)
        store.write(0, [(b"a", None)], None)
        store.get(0, [b"a", b"bc", b"x"])

        assert store.stats == StoreStats(
            rows_read=3,
            rows_missed=2,
            rows_written=2,
            rows_deleted=1,
            bytes_written=1 + 3 + 2 + 0 + 1,
            batches_written=2,
        )
