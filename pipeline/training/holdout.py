"""Whose last items are held out of a training: they choose its best weights, or judge them."""

from collections.abc import Sequence

import numpy as np
import numpy.typing as npt

from models.evaluation import Holdout, Split
from models.packing import Indices

MIN_SPLIT_ITEMS = 3
"""A user with fewer items only trains, as in `models.evaluation.leave_one_out`."""


def hold_out_last_items(
    sequences: Sequence[Indices], user_hashes: npt.NDArray[np.uint64], most_users: int
) -> Split:
    """Hold out the last item of users who have at least three.

    Where there are more users than wanted, those with the lowest hashes are taken. A user taken
    today was so taken, as long as there were fewer users then: no earlier release has trained on an
    item that is held out now, and comparing them is fair. A user's hash says as well which of the
    two an item is held out for, so none that judges has chosen before. Where one of them would have
    no user, all users do both.

    Args:
        sequences: One user's items each, oldest first.
        user_hashes: uint64 (u,).
        most_users: Most users to hold out an item of.
    """
    eligible = np.flatnonzero([len(sequence) >= MIN_SPLIT_ITEMS for sequence in sequences])
    lowest = np.argsort(user_hashes[eligible], kind="stable")[:most_users]
    held_out = set(eligible[lowest].tolist())
    chooses = [user for user in sorted(held_out) if user_hashes[user] % 2 == 0]
    judges = [user for user in sorted(held_out) if user_hashes[user] % 2 == 1]
    return Split(
        train=[
            sequence[:-1] if user in held_out else sequence
            for user, sequence in enumerate(sequences)
        ],
        validation=Holdout.of_last_items([sequences[user] for user in chooses or judges]),
        test=Holdout.of_last_items([sequences[user] for user in judges or chooses]),
    )
