"""Scanning anew: the model's own forward, in batches and in pieces, and the comparison of lists."""

from pathlib import Path

import numpy as np
import pytest
import torch

from models.release import load_recommender
from pipeline.verification import rescan
from pipeline.verification.rescan import Rescan, Stretch
from tests.releases import random_release

N_ITEMS = 30
# Sums of some dozen float32 numbers in another order.
TOLERANCE = 1e-6


@pytest.fixture(scope="module")
def scanner(tmp_path_factory: pytest.TempPathFactory) -> Rescan:
    """A release of 30 items with random weights."""
    folder: Path = tmp_path_factory.mktemp("releases")
    return Rescan(random_release(folder, [f"item-{i}" for i in range(N_ITEMS)]))


def stretches(lengths: tuple[int, ...]) -> list[Stretch]:
    """Random items; outputs are wanted after every item, before the first, and in no order."""
    random = np.random.default_rng(0)
    return [
        Stretch(items=random.integers(1, N_ITEMS + 1, n), ends=random.permutation(n + 1))
        for n in lengths
    ]


@pytest.mark.parametrize("max_rows", [1, 5, 16_384])
def test_a_scan_gives_what_the_model_gives(
    scanner: Rescan, monkeypatch: pytest.MonkeyPatch, max_rows: int
) -> None:
    """Every output is the model's, and a state is the same however its items are cut to pieces."""
    monkeypatch.setattr(rescan, "MAX_ROWS", max_rows)
    model = load_recommender(scanner.release)
    wanted = stretches((3, 0, 17, 1, 5, 0))

    found = {i: result for batch in scanner.scan(wanted) for i, result in batch}

    assert sorted(found) == list(range(len(wanted)))
    for i, stretch in enumerate(wanted):
        items = torch.from_numpy(np.append(0, stretch.items))
        with torch.inference_mode():
            pad = model(items[:1], torch.ones(1, dtype=torch.int64))
            rest = model(items[1:], torch.tensor([len(stretch.items)])) if len(items) > 1 else pad
        outputs = torch.cat([pad, rest])[torch.from_numpy(stretch.ends)]
        assert torch.allclose(found[i].outputs, outputs, atol=TOLERANCE)
        assert found[i].hidden.dtype == np.complex64
        assert found[i].hidden.any() == (len(stretch.items) > 0)


def test_a_state_is_that_of_single_steps(scanner: Rescan) -> None:
    """The recurrence, written out item by item in double precision, gives the same states."""
    (stretch,) = stretches((40,))
    model = load_recommender(scanner.release).double()

    ((_, found),) = next(iter(scanner.scan([stretch])))

    x = model.embedding_norm(model.item_embedding[torch.from_numpy(stretch.items)])
    for index, block in enumerate(model.blocks):
        lru = block.lru
        h = torch.zeros(lru.nu_log.shape, dtype=torch.complex128)
        outputs = []
        for row in x:
            u = torch.nn.functional.linear(row, *lru.input_projection())
            h = torch.view_as_complex(u.view(-1, 2)) + lru.eigenvalues() * h
            y = lru.out_weight @ torch.view_as_real(h).flatten() + lru.out_bias
            outputs.append(block.feed_forward(lru.norm(y + row)))
        x = torch.stack(outputs)
        difference = np.abs(found.hidden[index] - h.detach().numpy()).max()
        assert difference < 1e-5


def test_nothing_to_scan_gives_nothing(scanner: Rescan) -> None:
    """No stretches, no batches."""
    assert list(scanner.scan([])) == []


def test_a_list_is_compared_with_every_other_item(
    scanner: Rescan, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The distance to the best unlisted item is exact, whatever may be missing, chunk by chunk."""
    monkeypatch.setattr(rescan, "MAX_SCORES", 2 * (N_ITEMS + 1))
    model = load_recommender(scanner.release)
    outputs = torch.randn(5, scanner.release.config.hidden_size)
    with torch.inference_mode():
        scores = model.scores(outputs)[:, 1:]
    order = scores.argsort(1, descending=True).numpy() + 1
    sorted_scores = -np.sort(-scores.numpy(), axis=1).astype(np.float64)
    lists, listed = order[:, [0, 1, 3]].copy(), sorted_scores[:, [0, 1, 3]].copy()
    listed[4, 1] += 0.5
    lists[3, 2], listed[3, 2] = 0, 0  # a short list: its worst item is the second
    nothing = np.zeros((5, 1), np.int64)

    above, errors = scanner.compare_lists(outputs, lists, listed, nothing, np.empty(0, np.int64))

    expected = sorted_scores[:, 2] - sorted_scores[:, 3]
    expected[3] = sorted_scores[3, 2] - sorted_scores[3, 1]
    assert above == pytest.approx(expected, abs=TOLERANCE)
    assert errors == pytest.approx([0, 0, 0, 0, 0.5], abs=TOLERANCE)

    left_out = np.stack([order[:, 2], 0 * order[:, 2]], 1)
    barred = order[0, 4:5]
    above, _ = scanner.compare_lists(outputs, lists, listed, left_out, barred)

    assert above[0] == pytest.approx(sorted_scores[0, 5] - sorted_scores[0, 3], abs=TOLERANCE)
    assert (above[:3] < 0).all()
