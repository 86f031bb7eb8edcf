"""User histories cut into training windows and packed into batches without a single pad row.

The windows, their labels and the pad position that learns to predict a window's first item are
those of the dataset in the LRURec authors' code (Yue et al., WSDM 2024, arXiv 2310.02367). Theirs
pads every window to one length; here a batch is a list of segments laid end to end, and where
theirs has a pad position with a label, there is a segment of nothing but the pad token. Numpy only.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np
import numpy.typing as npt

PAD = 0
"""Index of the pad token; items count from 1."""

Indices = npt.NDArray[np.int64]
"""Item indices or positions, int64, one dimension."""


class PackedBatch(NamedTuple):
    """Segments laid end to end; every position has a label."""

    items: Indices
    """(t,) the model's input: item indices, segment after segment, each oldest first."""
    lengths: Indices
    """(s,) positions in each segment, at least 1, summing to t."""
    labels: Indices
    """(t,) the item that followed each position."""


class PackedHistories(NamedTuple):
    """The ends of several histories laid end to end, one segment each."""

    items: Indices
    """(t,) item indices, history after history, each oldest first."""
    lengths: Indices
    """(u,) positions of each history, at least 1, summing to t."""


@dataclass(frozen=True, kw_only=True)
class TrainingWindows:
    """Training windows over the histories of all users, cut once and batched anew every epoch.

    A window is a run of labels in `events`: its inputs are the events one place earlier, except
    that the first input of a `cold` window is the pad token, alone in its segment.
    """

    events: Indices
    """(n,) all histories end to end."""
    starts: Indices
    """(w,) place in `events` of each window's first label."""
    counts: Indices
    """(w,) labels of each window, at least 1 and at most the maximal length."""
    cold: npt.NDArray[np.bool_]
    """(w,) whether the window's first label is predicted from the pad token."""

    @classmethod
    def cut(cls, sequences: Sequence[npt.ArrayLike], max_length: int) -> "TrainingWindows":
        """Cut every user's history by the rule of the authors' dataset.

        A history shorter than twice `max_length` is one window: its labels are the last
        `max_length` items. A longer one is cut, from its end backwards, into windows of
        `max_length` items that share nothing; its oldest items, too few for a whole window, are
        left out. A window that has fewer than `max_length` inputs also predicts its first item,
        from the pad token.

        Args:
            sequences: One history a user, item indices from 1, oldest first.
            max_length: Positions of the longest window.

        Returns:
            The windows, in the order of the users, a user's latest window first.

        Raises:
            ValueError: `max_length` is below 1, or an index is below 1.
        """
        if max_length < 1:
            msg = f"max_length must be at least 1, got {max_length}"
            raise ValueError(msg)
        events, lengths = concatenate(sequences)
        if events.size and events.min() <= PAD:
            msg = f"sequences must hold item indices from 1 on, got {events.min()}"
            raise ValueError(msg)
        ends = np.cumsum(lengths)

        windows_of = np.where(lengths < 2 * max_length, lengths > 0, lengths // max_length)
        users = np.repeat(np.arange(lengths.size), windows_of)
        window_ends = ends[users] - max_length * _places_in_groups(windows_of)
        counts = np.minimum(lengths[users], max_length)
        single = windows_of[users] == 1
        cold = ~single | (lengths[users] <= max_length)
        return cls(events=events, starts=window_ends - counts, counts=counts, cold=cold)

    def __len__(self) -> int:
        """Count the windows."""
        return self.starts.size

    def batch(self, windows: Indices) -> PackedBatch:
        """Pack the given windows, in the given order.

        A cold window becomes a segment with the pad token and, where it has more than one label, a
        second segment with its items.
        """
        counts, cold = self.counts[windows], self.cold[windows]
        first_rows = np.cumsum(counts) - counts
        places = np.repeat(self.starts[windows] - first_rows, counts) + np.arange(counts.sum())
        labels = self.events[places]
        items = self.events[places - 1]
        items[first_rows[cold]] = PAD

        parts = np.stack([cold, counts - cold], axis=1).astype(np.int64).ravel()
        return PackedBatch(items, parts[parts > 0], labels)

    def batch_count(self, batch_size: int) -> int:
        """Batches of one epoch, the last and smaller one included."""
        return -(-len(self) // batch_size)

    def epoch(
        self, batch_size: int, *, seed: int, epoch: int, first_step: int = 0
    ) -> Iterator[Indices]:
        """Go through every window once, in an order that depends on `seed` and `epoch` alone.

        Args:
            batch_size: Windows of a batch.
            seed: Any integer from 0 on.
            epoch: Which pass over the windows, from 0 on.
            first_step: Batches to leave out at the start: where an interrupted epoch goes on.

        Yields:
            The windows of each batch, those of the last one what is left.
        """
        order = np.random.default_rng((seed, epoch)).permutation(len(self))
        for start in range(first_step * batch_size, len(self), batch_size):
            yield order[start : start + batch_size]

    def share(self, windows: Indices, rank: int, count: int) -> Indices:
        """Return one process's part of a batch's windows, with about as many labels as any other.

        Args:
            windows: Those of the batch.
            rank: Which process, from 0.
            count: Processes that share the batch; a single one gets it as it is.
        """
        if count == 1:
            return windows
        return windows[np.argsort(-self.counts[windows], kind="stable")][rank::count]


def concatenate(sequences: Sequence[npt.ArrayLike]) -> tuple[Indices, Indices]:
    """Lay sequences end to end: all their items (n,) and the length of each (u,)."""
    arrays = [np.asarray(sequence, dtype=np.int64) for sequence in sequences]
    lengths = np.fromiter((array.size for array in arrays), np.int64, len(arrays))
    items = np.concatenate(arrays) if arrays else np.empty(0, np.int64)
    return items, lengths


def pack_histories(histories: Sequence[npt.ArrayLike], max_length: int) -> PackedHistories:
    """Keep the last `max_length` items of every history; an empty one becomes the pad token.

    The output after a history's last position is then what the model recommends from.
    """
    ends = [np.asarray(history, dtype=np.int64)[-max_length:] for history in histories]
    pad = np.full(1, PAD, np.int64)
    return PackedHistories(*concatenate([end if end.size else pad for end in ends]))


def _places_in_groups(counts: Indices) -> Indices:
    """Number the members of consecutive groups from 0: (2, 3) gives 0 1 0 1 2."""
    return np.arange(counts.sum()) - np.repeat(np.cumsum(counts) - counts, counts)
