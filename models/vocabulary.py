"""Item ids, the rows that a model gives them, and their hashes. Knows no tensor.

An item's hash depends on its id alone, so user state may hold hashes across releases, also of items
that no release knows yet; a vocabulary maps them to the rows of its model.
"""

from collections.abc import Sequence

import numpy as np
import xxhash
from numpy.typing import NDArray


def item_hash(item_id: str) -> int:
    """Return xxh3_64 of the id's UTF-8 bytes, as an unsigned 64-bit integer.

    0 stands for "no item", so an id that would hash to 0 gets 1.

    Raises:
        UnicodeEncodeError: the id has no UTF-8 form (a lone surrogate).
    """
    return xxhash.xxh3_64_intdigest(item_id.encode()) or 1


class Vocabulary:
    """The items of a model: the i-th id (from 0) has row i + 1; row 0 is the pad token.

    Immutable; the arrays are read-only.

    Attributes:
        item_ids: the ids, in the order of their rows.
        hashes: uint64 (n_items + 1,), each row's `item_hash`; 0 for the pad.
        counts: int64 (n_items + 1,), each row's occurrences in the training data; 0 for the pad.

    Raises:
        ValueError: there is no item, an id is there twice, two ids have one hash, or the counts are
            not one for each item and at least 0.
    """

    item_ids: tuple[str, ...]
    hashes: NDArray[np.uint64]
    counts: NDArray[np.int64]

    def __init__(self, item_ids: Sequence[str], counts: Sequence[int] | NDArray[np.int64]) -> None:
        self.item_ids = tuple(item_ids)
        if not self.item_ids:
            msg = "a vocabulary must have at least 1 item, got none"
            raise ValueError(msg)
        if len(counts) != len(self.item_ids):
            msg = (
                f"there must be one count for each of {len(self.item_ids)} items, got {len(counts)}"
            )
            raise ValueError(msg)
        self.counts = np.concatenate(([0], np.asarray(counts, np.int64)))
        if self.counts.min() < 0:
            msg = f"counts must be at least 0, got {self.counts.min()}"
            raise ValueError(msg)
        self.hashes = np.fromiter((0, *map(item_hash, self.item_ids)), np.uint64)
        self._index_of = {item_id: index for index, item_id in enumerate(self.item_ids, 1)}
        self._rows_by_hash = np.argsort(self.hashes)
        self._sorted_hashes = self.hashes[self._rows_by_hash]
        self._refuse_repetition()
        for array in (self.hashes, self.counts):
            array.flags.writeable = False

    def _refuse_repetition(self) -> None:
        repeated = np.flatnonzero(self._sorted_hashes[1:] == self._sorted_hashes[:-1])
        if not repeated.size:
            return
        one, other = (self.item_ids[self._rows_by_hash[repeated[0] + i] - 1] for i in (0, 1))
        if one == other:
            msg = f"item ids must be distinct, got {one!r} twice"
        else:
            both = f"{one!r} and {other!r}"
            msg = f"item ids must have distinct hashes, got {item_hash(one)} for {both}"
        raise ValueError(msg)

    @property
    def n_items(self) -> int:
        """Items, the pad token not counted."""
        return len(self.item_ids)

    def index_of(self, item_id: str) -> int:
        """Return the id's row, or 0 for an id that is not in the vocabulary."""
        return self._index_of.get(item_id, 0)

    def indices_of_hashes(
        self, hashes: NDArray[np.uint64] | NDArray[np.int64]
    ) -> NDArray[np.int64]:
        """Return the row of every hash, in the array's shape; 0 for 0 and for an unknown hash.

        Signed hashes mean the unsigned ones of the same bits.
        """
        hashes = hashes.astype(np.uint64, copy=False)  # beside int64, numpy would compare floats
        places = np.minimum(np.searchsorted(self._sorted_hashes, hashes), self.n_items)
        return np.where(self._sorted_hashes[places] == hashes, self._rows_by_hash[places], 0)
