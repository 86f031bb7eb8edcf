"""What a vocabulary refuses and keeps; its laws are in tests/property."""

import numpy as np
import pytest
import xxhash

from models.vocabulary import Vocabulary, item_hash


def test_hashes_never_change() -> None:
    """States on disk hold these numbers: a change of the function is a change of the row format."""
    assert item_hash("") == 3244421341483603138
    assert item_hash("movie-1") == 10067429148469691657
    assert item_hash("höhe") == 7610706071165550953


def test_an_id_that_would_hash_to_zero_gets_one(monkeypatch: pytest.MonkeyPatch) -> None:
    """Zero means "no item" in states. No such id is known, so the digest is put in its place."""
    monkeypatch.setattr(xxhash, "xxh3_64_intdigest", lambda _: 0)

    assert item_hash("a") == 1


def test_a_repeated_id_is_refused() -> None:
    """The message names the id."""
    with pytest.raises(ValueError, match="distinct, got 'b' twice"):
        Vocabulary(["a", "b", "c", "b"], [1, 1, 1, 1])


def test_two_ids_with_one_hash_are_refused() -> None:
    """The message names both; these two do have the same xxh3_64."""
    assert item_hash("i35as3je") == item_hash("agEf&/f")

    with pytest.raises(ValueError, match=r"got 509585661864042563 for 'i35as3je' and 'agEf&/f'"):
        Vocabulary(["a", "i35as3je", "agEf&/f"], [1, 1, 1])


@pytest.mark.parametrize(
    ("item_ids", "counts", "message"),
    [
        ([], [], "at least 1 item, got none"),
        (["a", "b"], [1], "one count for each of 2 items, got 1"),
        (["a"], [-1], "counts must be at least 0, got -1"),
    ],
)
def test_a_vocabulary_needs_items_and_their_counts(
    item_ids: list[str], counts: list[int], message: str
) -> None:
    """Rule and value stand in the message."""
    with pytest.raises(ValueError, match=message):
        Vocabulary(item_ids, counts)


def test_an_id_without_utf8_form_is_refused() -> None:
    """A lone surrogate has no bytes to hash."""
    with pytest.raises(UnicodeEncodeError):
        Vocabulary(["\ud800"], [1])


def test_hashes_are_found_in_any_shape_and_integer_type() -> None:
    """A ring of many users maps at once; signed integers mean the same 64 bits."""
    vocabulary = Vocabulary(["a", "b"], np.array([5, 6]))
    ring = np.stack([vocabulary.hashes, vocabulary.hashes[::-1]])

    assert vocabulary.indices_of_hashes(ring).tolist() == [[0, 1, 2], [2, 1, 0]]
    assert vocabulary.indices_of_hashes(ring.view(np.int64)).tolist() == [[0, 1, 2], [2, 1, 0]]


def test_the_arrays_cannot_be_written_to() -> None:
    """Everybody who holds the vocabulary sees the same one."""
    vocabulary = Vocabulary(["a"], [1])

    for array in (vocabulary.hashes, vocabulary.counts):
        with pytest.raises(ValueError, match="read-only"):
            array[0] = 1
