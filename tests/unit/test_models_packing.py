"""Windows and packed batches against the authors' rule, written out by hand for small cases."""

import numpy as np
import pytest

from models.packing import PAD, TrainingWindows, pack_histories


def batch_of(sequence: list[int], max_length: int) -> tuple[list[int], list[int], list[int]]:
    """Pack all windows of one history, in order."""
    windows = TrainingWindows.cut([sequence], max_length)
    batch = windows.batch(np.arange(len(windows)))
    return batch.items.tolist(), batch.lengths.tolist(), batch.labels.tolist()


@pytest.mark.parametrize(
    ("sequence", "items", "lengths", "labels"),
    [
        pytest.param([7], [PAD], [1], [7], id="one item: only the pad token has a label"),
        pytest.param([7, 8], [PAD, 7], [1, 1], [7, 8], id="short: pad predicts the first"),
        pytest.param([1, 2, 3, 4], [PAD, 1, 2, 3], [1, 3], [1, 2, 3, 4], id="as long as a window"),
        pytest.param([1, 2, 3, 4, 5], [1, 2, 3, 4], [4], [2, 3, 4, 5], id="one more: no pad"),
        pytest.param(list(range(1, 8)), [3, 4, 5, 6], [4], [4, 5, 6, 7], id="under two windows"),
        pytest.param(
            list(range(1, 10)),
            [PAD, 6, 7, 8, PAD, 2, 3, 4],
            [1, 3, 1, 3],
            [6, 7, 8, 9, 2, 3, 4, 5],
            id="two windows and an item left out",
        ),
    ],
)
def test_windows_are_cut_by_the_authors_rule(
    sequence: list[int], items: list[int], lengths: list[int], labels: list[int]
) -> None:
    """Items, segments and labels of every kind of history, four items a window."""
    assert batch_of(sequence, 4) == (items, lengths, labels)


def test_an_empty_history_gives_no_window() -> None:
    """Users without items neither fail nor shift their neighbours."""
    windows = TrainingWindows.cut([[], [5, 6], []], 4)

    assert len(windows) == 1
    assert windows.batch(np.array([0])).labels.tolist() == [5, 6]


def test_no_history_at_all_gives_no_window() -> None:
    """An empty corpus is cut into nothing."""
    windows = TrainingWindows.cut([], 4)

    assert (len(windows), windows.counts.sum(), windows.batch_count(8)) == (0, 0, 0)


def test_an_epoch_visits_every_window_once_in_an_order_of_its_own() -> None:
    """Two epochs hold the same labels in different orders; the same epoch is the same twice."""
    windows = TrainingWindows.cut([[user] for user in range(1, 101)], 4)

    def labels(epoch: int) -> list[int]:
        return np.concatenate(
            [windows.batch(chosen).labels for chosen in windows.epoch(16, seed=3, epoch=epoch)]
        ).tolist()

    assert labels(0) == labels(0)
    assert labels(0) != labels(1)
    assert sorted(labels(0)) == sorted(labels(1)) == list(range(1, 101))


def test_an_epoch_goes_on_where_it_was_left() -> None:
    """Leaving out the first batches leaves the others as they are."""
    windows = TrainingWindows.cut([[user, user + 1] for user in range(1, 50)], 4)
    whole = list(windows.epoch(10, seed=1, epoch=2))

    rest = list(windows.epoch(10, seed=1, epoch=2, first_step=3))

    assert windows.batch_count(10) == len(whole) == 5
    assert [chosen.tolist() for chosen in rest] == [chosen.tolist() for chosen in whole[3:]]


@pytest.mark.parametrize(
    ("sequences", "max_length", "message"),
    [([[1, 0, 2]], 4, "from 1 on, got 0"), ([[1]], 0, "at least 1, got 0")],
    ids=["a pad token among the items", "no room for an item"],
)
def test_unusable_input_is_refused(
    sequences: list[list[int]], max_length: int, message: str
) -> None:
    """A pad token in the data or a window of nothing is a mistake, said with its value."""
    with pytest.raises(ValueError, match=message):
        TrainingWindows.cut(sequences, max_length)


def test_histories_are_packed_by_their_last_items() -> None:
    """Long histories keep their end, short ones all, empty ones become the pad token."""
    items, lengths = pack_histories([[1, 2, 3, 4], [], [9]], 3)

    assert items.tolist() == [2, 3, 4, PAD, 9]
    assert lengths.tolist() == [3, 1, 1]
