"""Packed batches against a direct transcription of the padded rule they replace."""

from random import Random

import numpy as np
from hypothesis import given
from hypothesis import strategies as st

from models.packing import PAD, TrainingWindows

histories = st.lists(st.lists(st.integers(1, 9), max_size=40), max_size=8)


def padded_windows(history: list[int], max_length: int) -> list[tuple[list[int], list[int]]]:
    """Cut one history as the authors' dataset does: (inputs, labels) padded left to one length."""
    if len(history) < 2 * max_length:
        cuts = [history] if history else []
    else:
        starts = range(len(history) - max_length, -1, -max_length)
        cuts = [history[start : start + max_length] for start in starts]
    windows = []
    for cut in cuts:
        inputs, labels = cut[:-1][-max_length:], cut[-max_length:]
        windows.append(
            (
                [PAD] * (max_length - len(inputs)) + inputs,
                [PAD] * (max_length - len(labels)) + labels,
            )
        )
    return windows


def labelled_positions(
    windows: list[tuple[list[int], list[int]]],
) -> list[tuple[tuple[int, ...], int]]:
    """List what each labelled position sees, its own item last, and its label."""
    seen = []
    for inputs, labels in windows:
        for place, label in enumerate(labels):
            if label != PAD:
                items = tuple(item for item in inputs[: place + 1] if item != PAD)
                seen.append((items or (PAD,), label))
    return seen


@given(histories, st.integers(1, 7))
def test_every_labelled_position_sees_what_the_padded_form_shows_it(
    sequences: list[list[int]], max_length: int
) -> None:
    """The packed batch trains the same (history, next item) pairs, in the same order, no others."""
    expected = labelled_positions(
        [window for history in sequences for window in padded_windows(history, max_length)]
    )
    windows = TrainingWindows.cut(sequences, max_length)

    batch = windows.batch(np.arange(len(windows)))
    actual = []
    ends = np.cumsum(batch.lengths)
    for start, end in zip(ends - batch.lengths, ends, strict=True):
        for place in range(start, end):
            actual.append(
                (tuple(batch.items[start : place + 1].tolist()), int(batch.labels[place]))
            )

    assert actual == expected
    assert windows.counts.sum() == len(expected)


@given(histories, st.integers(1, 7), st.integers(1, 5))
def test_shares_of_a_batch_are_all_of_it_and_about_as_large(
    sequences: list[list[int]], max_length: int, count: int
) -> None:
    """Every window is in one process's share; labels differ by one window's at most."""
    windows = TrainingWindows.cut(sequences, max_length)
    chosen = np.arange(len(windows))[::-1]

    shares = [windows.share(chosen, rank, count) for rank in range(count)]
    labels = [int(windows.counts[share].sum()) for share in shares]

    assert sorted(np.concatenate(shares).tolist()) == sorted(chosen.tolist())
    assert max(labels) - min(labels) <= max_length
    assert windows.share(chosen, 0, 1).tolist() == chosen.tolist()


@given(st.integers(0, 2**32 - 1), st.integers(0, 100))
def test_every_epoch_mixes_the_windows_by_its_seed(seed: int, epoch: int) -> None:
    """No epoch, the first included, goes by the order of the users, or by that of another seed."""
    windows = TrainingWindows.cut([[user] for user in range(1, 101)], 4)

    def order(seed: int) -> list[int]:
        return np.concatenate(list(windows.epoch(16, seed=seed, epoch=epoch))).tolist()

    assert order(seed) != list(range(100))
    assert order(seed) != order(seed + 1)


@given(histories, st.integers(1, 12), st.integers(1, 5), st.randoms())
def test_shares_of_a_batch_are_whole_and_about_equal(
    sequences: list[list[int]], max_length: int, count: int, random: Random
) -> None:
    """Every window is with one process, and no process has a window's labels more than another."""
    windows = TrainingWindows.cut(sequences, max_length)
    batch = np.array(random.sample(range(len(windows)), len(windows)), np.int64)

    shares = [windows.share(batch, rank, count) for rank in range(count)]

    assert sorted(np.concatenate(shares).tolist()) == sorted(batch.tolist())
    labels = [int(windows.counts[share].sum()) for share in shares]
    assert max(labels) - min(labels) <= windows.counts.max(initial=0)
