"""What `verify` takes of the items topic, against the worker that reads the same."""

from contextlib import suppress

from hypothesis import given
from hypothesis import strategies as st

from models.vocabulary import item_hash
from pipeline.verification.catalogue import read_catalogue
from pipeline.worker.catalogue import Catalogue
from tests.verify_world import ListedRecord

KEYS = [b"a", b"b", b"\xff"]
VALUES = [
    None,
    b"{}",
    b'{"available": true}',
    b'{"available": false}',
    b'{"available": false, "title": "x"}',
    b'{"available": false, "title": 5}',
    b'{"available": 0}',
    b"[]",
    b"{",
]


@given(records=st.lists(st.tuples(st.sampled_from(KEYS), st.sampled_from(VALUES)), max_size=8))
def test_items_are_withdrawn_where_workers_leave_them_out(
    records: list[tuple[bytes, bytes | None]],
) -> None:
    """At every moment those that are, and of all moments those that ever were; no others."""
    worker, ever = Catalogue(), set()
    for key, value in records:
        with suppress(ValueError):  # the worker says so, and goes on
            worker.apply(key, value)
        ever |= worker.unavailable_hashes()

    read = read_catalogue(
        ListedRecord("items", 0, offset, offset, key, value)
        for offset, (key, value) in enumerate(records)
    )

    assert {item_hash(item_id) for item_id in read.withdrawn} == worker.unavailable_hashes()
    assert {item_hash(item_id) for item_id in read.barred} == ever
