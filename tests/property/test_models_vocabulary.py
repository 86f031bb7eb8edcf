"""Laws of the vocabulary: ids, rows and hashes lead to each other."""

import numpy as np
import xxhash
from hypothesis import given
from hypothesis import strategies as st

from models.vocabulary import Vocabulary, item_hash

ITEM_IDS = st.text(st.characters(exclude_categories=["Cs"]), max_size=20)


@given(st.lists(ITEM_IDS, unique=True, min_size=1, max_size=30), ITEM_IDS)
def test_ids_rows_and_hashes_lead_to_each_other(item_ids: list[str], other: str) -> None:
    """Row i + 1 belongs to the i-th id, by id and by hash; anything else has row 0."""
    vocabulary = Vocabulary(item_ids, range(len(item_ids)))
    rows = list(range(1, len(item_ids) + 1))

    assert vocabulary.item_ids == tuple(item_ids)
    assert [vocabulary.index_of(item_id) for item_id in item_ids] == rows
    assert vocabulary.hashes.tolist() == [0, *map(item_hash, item_ids)]
    assert vocabulary.counts.tolist() == [0, *range(len(item_ids))]
    found = vocabulary.indices_of_hashes(vocabulary.hashes)
    assert found.tolist() == [0, *rows]
    assert found.dtype == np.int64
    if other not in item_ids:
        assert vocabulary.index_of(other) == 0
        assert vocabulary.indices_of_hashes(np.array([item_hash(other)], np.uint64)).item() == 0


@given(st.lists(st.integers(0, 2**64 - 1), max_size=20))
def test_unknown_hashes_have_row_zero(hashes: list[int]) -> None:
    """No hash outside the vocabulary is taken for an item's, be it below, between or above."""
    vocabulary = Vocabulary(["a", "b", "c"], [1, 1, 1])
    known = dict(zip(vocabulary.hashes.tolist(), range(4), strict=True))

    found = vocabulary.indices_of_hashes(np.array(hashes, np.uint64))

    assert found.tolist() == [known.get(hash_, 0) for hash_ in hashes]


@given(ITEM_IDS)
def test_a_hash_is_that_of_the_utf8_bytes_and_never_zero(item_id: str) -> None:
    """Other programs can compute it from the id alone."""
    assert item_hash(item_id) == (xxhash.xxh3_64(item_id.encode("utf-8")).intdigest() or 1)
    assert 1 <= item_hash(item_id) < 2**64
