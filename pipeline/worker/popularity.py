"""How often each item occurred: the baseline, and the answer while there is no model."""

import heapq
from collections import Counter
from collections.abc import Collection
from operator import itemgetter

import numpy as np
import numpy.typing as npt

from pipeline.worker.served_model import ServedModel, item_json

MAX_ITEMS = 200_000  # counted while there is no release

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


class Popularity:
    """Counts of one worker: those of the release's training data, and every event since.

    Without a release, counts are kept by item id; with one, by index in its vocabulary.
    """

    def __init__(self) -> None:
        self._counts: Ints | None = None
        self._top: Ints = np.empty(0, np.int64)
        self._hashes: Hashes = np.zeros(1, np.uint64)
        self._by_id: Counter[tuple[str, int]] = Counter()

    def adopt(self, model: ServedModel) -> None:
        """Begin anew from the counts of a release's training data."""
        self._counts = model.release.vocabulary.counts.copy()
        self._counts[0] = -1
        self._hashes = model.hashes
        self._top = self._top[:0]
        self._by_id.clear()

    def add(self, item: Ints, item_hash: Hashes, item_ids: list[str]) -> None:
        """Count events; items that the release does not know (index 0) are left out."""
        if self._counts is None:
            self._by_id.update(zip(item_ids, item_hash.tolist(), strict=True))
            if len(self._by_id) > MAX_ITEMS:  # made-up ids must not fill the memory
                self._by_id = Counter(dict(self._by_id.most_common(MAX_ITEMS // 2)))
        else:
            np.add.at(self._counts, item, 1)
            self._counts[0] = -1
            self._lift(item)

    def _lift(self, item: Ints) -> None:
        """Take into the most frequent items those that just came to exceed one of them.

        Only they can: so the whole catalogue is not looked through for every batch.
        """
        if self._counts is not None and len(self._top):
            higher = item[self._counts[item] > self._counts[self._top].min()]
            if len(higher):
                either = np.unique(np.concatenate([self._top, higher]))
                self._top = either[_highest(self._counts[either], len(self._top))]

    def top_hashes(self, k: int) -> Hashes:
        """Return the hashes of the k most frequent items, fewer where there are fewer."""
        if self._counts is None:
            return np.array(
                [item_hash for (_, item_hash), _ in self._by_id.most_common(k)], np.uint64
            )
        k = min(k, len(self._counts) - 1)
        if len(self._top) != k:
            self._top = _highest(self._counts, k)
        return self._hashes[self._top]

    def top_items(
        self, k: int, without: Collection[int] = ()
    ) -> tuple[Hashes, list[str], list[float]]:
        """Return the k most frequent items while there is no release, most frequent first.

        Args:
            k: How many; fewer come where there are fewer.
            without: Hashes of items to leave out.

        Returns:
            Hashes, beginnings of the items in JSON, and counts; entry 0 of each stands for "no
            item".
        """
        left = (one for one in self._by_id.items() if one[0][1] not in without)
        most = heapq.nlargest(k, left, key=itemgetter(1))
        hashes = np.array([0, *(item_hash for (_, item_hash), _ in most)], np.uint64)
        return (
            hashes,
            ["", *(item_json(item_id) for (item_id, _), _ in most)],
            [0.0, *(float(n) for _, n in most)],
        )


def _highest(counts: Ints, k: int) -> Ints:
    """Return the indices of the k highest counts, in any order."""
    return (
        np.argpartition(-counts, k - 1)[:k] if 0 < k < len(counts) else np.arange(len(counts))[:k]
    )
