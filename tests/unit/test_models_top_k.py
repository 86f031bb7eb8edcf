"""Edges of top-k; exactness is in tests/property."""

import pytest
import torch

from models.serving import top_k as module
from models.serving.top_k import BLOCK_ITEMS, top_k


def test_a_catalogue_of_several_blocks_is_ranked_as_one() -> None:
    """The best items of a catalogue larger than a block are found, whichever block they are in."""
    torch.manual_seed(0)
    v = 2 * BLOCK_ITEMS + 3
    outputs, weight, bias = torch.randn(3, 4), torch.randn(v, 4), torch.randn(v)
    excluded = (outputs @ weight.t() + bias).topk(3).indices

    scores, items = top_k(outputs, weight, bias, 20, excluded, None)

    expected = outputs @ weight.t() + bias
    expected[:, 0] = -torch.inf
    expected.scatter_(1, excluded, -torch.inf)
    assert torch.allclose(scores, expected.topk(20).values, atol=1e-5)
    assert torch.allclose(scores, expected.gather(1, items), atol=1e-5)


def test_a_catalogue_of_a_few_thousand_is_ranked_in_two_rounds() -> None:
    """The round over group maxima loses no item at the size it is made for."""
    torch.manual_seed(0)
    outputs, weight, bias = torch.randn(8, 4), torch.randn(3701, 4), torch.randn(3701)

    scores, items = top_k(outputs, weight, bias, 10, None, None)

    expected = outputs @ weight.t() + bias
    expected[:, 0] = -torch.inf
    assert torch.allclose(scores, expected.topk(10).values, atol=1e-5)
    assert torch.allclose(scores, expected.gather(1, items), atol=1e-5)


def test_no_place_in_the_catalogue_is_overlooked() -> None:
    """Whichever item is the best is found, in a group of the first round or behind the last one."""
    torch.manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(2100, 8))

    _, items = top_k(weight[1:], weight, torch.zeros(2100), 3, None, None)

    assert items[:, 0].tolist() == list(range(1, 2100))


@pytest.mark.parametrize("v", range(3, 15))
def test_no_place_in_a_block_is_overlooked_or_struck_for_another(
    monkeypatch: pytest.MonkeyPatch, v: int
) -> None:
    """First and last places of blocks, also of a block of one: only the excluded item is out."""
    monkeypatch.setattr(module, "BLOCK_ITEMS", 4)
    torch.manual_seed(0)
    weight = torch.nn.functional.normalize(torch.randn(v, 8))
    best = torch.arange(1, v)
    for excluded in (best % (v - 1) + 1, (best - 2) % (v - 1) + 1):  # the next item, the one before
        _, items = top_k(weight[1:], weight, torch.zeros(v), v - 1, excluded[:, None], None)

        assert items[:, 0].tolist() == best.tolist()
        assert not (items == excluded[:, None]).any()
        assert ((items > 0).sum(1) == v - 2).all()


def test_k_must_be_at_least_one() -> None:
    """No item is not a recommendation."""
    with pytest.raises(ValueError, match="k must be at least 1, got 0"):
        top_k(torch.zeros(1, 1), torch.zeros(3, 1), torch.zeros(3), 0, None, None)


@pytest.mark.parametrize("item", [-1, 3])
def test_an_excluded_item_must_be_in_the_vocabulary(item: int) -> None:
    """An index that names no item is refused with both bounds."""
    with pytest.raises(ValueError, match=rf"excluded items must be in 0\.\.2, got .*{item}"):
        top_k(torch.zeros(1, 1), torch.zeros(3, 1), torch.zeros(3), 1, torch.tensor([[item]]), None)


def test_the_masks_stay_as_they_were() -> None:
    """Neither the bias nor the exclusions are written to."""
    bias, excluded = torch.ones(3), torch.tensor([[1]])
    unavailable = torch.tensor([False, False, True])

    top_k(torch.zeros(1, 1), torch.zeros(3, 1), bias, 1, excluded, unavailable)

    assert bias.tolist() == [1, 1, 1]
    assert excluded.tolist() == [[1]]
    assert unavailable.tolist() == [False, False, True]
