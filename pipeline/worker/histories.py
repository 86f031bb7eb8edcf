"""What each user of a micro-batch did, event by event: the remembered items, then the new ones."""

import numpy as np
import numpy.typing as npt

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


class Histories:
    """The users' items laid end to end, so that "the last n before this event" is one gather.

    Args:
        remembered: uint64 (u, ring), each user's ring before the batch, oldest first, left-aligned.
        lengths: int64 (u,), how many of them are items.
        user: int64 (e,), non-decreasing, the user of each new event.
        items: uint64 (e,), the item of each new event, a user's oldest first.
    """

    def __init__(self, remembered: Hashes, lengths: Ints, user: Ints, items: Hashes) -> None:
        n_users, ring = remembered.shape
        new = np.bincount(user, minlength=n_users)
        ends = np.cumsum(lengths + new)
        self._starts = ends - lengths - new
        self._flat = np.zeros(int(ends[-1]) if n_users else 0, np.uint64)
        nth_old = np.arange(ring)
        old = nth_old < lengths[:, None]
        self._flat[(self._starts[:, None] + nth_old)[old]] = remembered[old]
        nth_new = np.arange(len(user)) - np.repeat(np.cumsum(new) - new, new)
        self._user = user
        self._at = (self._starts + lengths)[user] + nth_new
        self._flat[self._at] = items
        self._ends = ends

    def before(self, events: Ints, size: int) -> Hashes:
        """Return the last `size` items before each event, newest first, 0 where there are fewer."""
        return self._window(self._at[events] - 1, self._user[events], size)

    def after(self, events: Ints, size: int) -> Hashes:
        """Return the last `size` items up to each event, itself included, newest first."""
        return self._window(self._at[events], self._user[events], size)

    def at_end(self, users: Ints, size: int) -> Hashes:
        """Return the last `size` items of each user, newest first."""
        return self._window(self._ends[users] - 1, users, size)

    def _window(self, newest: Ints, user: Ints, size: int) -> Hashes:
        index = newest[:, None] - np.arange(size)
        inside = index >= self._starts[user][:, None]
        if not len(self._flat):
            return np.zeros(index.shape, np.uint64)
        window: Hashes = np.where(inside, self._flat[np.maximum(index, 0)], np.uint64(0))
        return window


def repeats_recent(window: Hashes, items: Hashes, k: int) -> npt.NDArray[np.bool_]:
    """Tell which items are among the last k distinct ones of their window.

    Args:
        window: uint64 (n, size), newest first, 0 for none.
        items: uint64 (n,).
        k: How many distinct items count.
    """
    same = window == items[:, None]
    newest = np.where(same.any(axis=1), same.argmax(axis=1), window.shape[1])
    hits: npt.NDArray[np.bool_] = newest < k
    for row in np.flatnonzero((newest >= k) & (newest < window.shape[1])).tolist():
        hits[row] = len(set(window[row, : newest[row]].tolist())) < k
    return hits


def is_in_list(lists: Hashes, items: Hashes) -> npt.NDArray[np.bool_]:
    """Tell which items (n,) are in their list (n, k)."""
    hits: npt.NDArray[np.bool_] = (lists == items[:, None]).any(axis=1)
    return hits


def last_of_each(user: Ints) -> Ints:
    """Return the index of the last event of each user that occurs; `user` is non-decreasing."""
    is_last = np.ones(len(user), np.bool_)
    np.not_equal(user[1:], user[:-1], out=is_last[:-1])
    return is_last.nonzero()[0]
