"""Laws of serving in C++: the numbers of torch and of double precision, the bits of any batch."""

import functools
import math
import tempfile
import threading
from pathlib import Path
from typing import Literal

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.config import ModelConfig
from models.recommender import Recommender
from models.serving import native as serving_native
from models.serving.model import ServingModel
from models.serving.native import NativeServing, load_native_serving
from models.serving.native_top_k import NativeCatalogue

TOLERANCE = 1e-5
"""States and outputs here are below 10; against double precision."""

N_ITEMS = 20
SIZES = [(8, 12, 3), (5, 3, 1), (64, 128, 2)]
"""Hidden, state, blocks: some that fill no vector, and the published ones."""


@functools.cache
def _native() -> NativeServing:
    with tempfile.TemporaryDirectory(prefix="lrurec-native-") as folder:  # loaded, it may go
        return load_native_serving(Path(folder))


@functools.cache
def _models(sizes: tuple[int, int, int]) -> tuple[Recommender, ServingModel, ServingModel]:
    """The model in double precision, by torch and in C++; a wrong weight would show."""
    hidden, state, blocks = sizes
    config = ModelConfig(n_items=N_ITEMS, hidden_size=hidden, state_size=state, n_blocks=blocks)
    recommender = Recommender(config, torch.Generator().manual_seed(3)).eval()
    with torch.no_grad():
        for name, parameter in recommender.named_parameters():
            if not name.endswith("_log") and "norm" not in name:
                parameter.mul_(15 if hidden < 64 else 5)
    by_torch, by_native = ServingModel(recommender), ServingModel(recommender, native=_native())
    return recommender.double(), by_torch, by_native


def _draw(seed: int, users: int, longest: int) -> tuple[Tensor, Tensor]:
    """Items and lengths of so many users."""
    generator = torch.Generator().manual_seed(seed)
    lengths = torch.randint(1, longest + 1, (users,), generator=generator)
    items = torch.randint(0, N_ITEMS + 1, (int(lengths.sum()),), generator=generator)
    return items, lengths


def _advance_in_cuts(
    model: ServingModel, items: Tensor, lengths: Tensor, random: np.random.Generator
) -> tuple[Tensor, Tensor]:
    """Advance from zero states, each user's events in random portions, users in random order."""
    sequences = list(torch.split(items, lengths.tolist()))
    states = model.init_state(len(sequences))
    outputs: list[list[Tensor]] = [[] for _ in sequences]
    rest = [sequence.tolist() for sequence in sequences]
    while any(rest):
        users = np.flatnonzero([len(events) > 0 for events in rest])
        users = random.permutation(users)[: random.integers(1, len(users) + 1)]
        cuts = [int(random.integers(1, len(rest[user]) + 1)) for user in users]
        events = [rest[user][:cut] for user, cut in zip(users, cuts, strict=True)]
        moved, of_events = model.advance(
            states[users],
            torch.tensor([item for portion in events for item in portion]),
            torch.tensor(cuts),
        )
        for user, cut, state, output in zip(
            users, cuts, moved, torch.split(of_events, cuts), strict=True
        ):
            states[user], rest[user] = state.clone(), rest[user][cut:]
            outputs[user].append(output)
    return states, torch.cat([output for of_user in outputs for output in of_user])


@pytest.mark.parametrize("sizes", SIZES, ids=str)
@given(st.integers(0, 2**32), st.one_of(st.integers(1, 9), st.integers(1, 300)), st.integers(1, 7))
def test_the_native_step_equals_the_model_in_double_precision(
    sizes: tuple[int, int, int], seed: int, users: int, longest: int
) -> None:
    """From zero states, outputs are the Recommender's and states those of torch, within 1e-5."""
    reference, by_torch, by_native = _models(sizes)
    items, lengths = _draw(seed, users, longest)

    states, outputs = by_native.advance(by_native.init_state(users), items, lengths)

    with torch.no_grad():
        expected = reference(items, lengths)
    assert (outputs - expected).abs().max() < TOLERANCE
    expected_states, _ = by_torch.advance(by_torch.init_state(users), items, lengths)
    assert (states - expected_states).abs().max() < TOLERANCE


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 12))
def test_any_cut_into_micro_batches_gives_the_same_bits(
    seed: int, users: int, longest: int
) -> None:
    """Step or scan, alone or with others: not one bit of a user's state or outputs differs."""
    _, _, model = _models(SIZES[0])
    items, lengths = _draw(seed, users, longest)

    states, outputs = model.advance(model.init_state(users), items, lengths)
    cut_states, cut_outputs = _advance_in_cuts(model, items, lengths, np.random.default_rng(seed))

    assert torch.equal(states, cut_states)
    assert torch.equal(outputs, cut_outputs)


@given(st.integers(0, 2**32), st.integers(1, 120), st.integers(1, 9))
def test_the_bits_do_not_depend_on_the_threads(seed: int, users: int, longest: int) -> None:
    """One thread or three, in small or large work: the same states, outputs and lists."""
    _, _, model = _models(SIZES[0])
    items, lengths = _draw(seed, users, longest)
    before = torch.randn(users, 3, 12, dtype=torch.complex64)
    found = []
    with pytest.MonkeyPatch.context() as patch:
        for threads in (1, 3):
            patch.setattr(serving_native, "SMALL_PRODUCTS", 0 if threads > 1 else 10**12)
            patch.setattr(torch, "get_num_threads", lambda threads=threads: threads)
            states, outputs = model.advance(before, items, lengths)
            found.append((states, outputs, *model.top_k(outputs, 5)))

    assert all(map(torch.equal, *found))


def test_several_threads_may_call_at_once() -> None:
    """Calls share nothing: each thread finds what it finds alone."""
    _, _, model = _models(SIZES[2])
    batches = [_draw(seed, 40, 5) for seed in range(8)]

    def answer(batch: tuple[Tensor, Tensor]) -> tuple[Tensor, ...]:
        states, outputs = model.advance(model.init_state(40), *batch)
        return states, outputs, *model.top_k(outputs, 4)

    alone = [answer(batch) for batch in batches]
    together: list[list[tuple[Tensor, ...]]] = [[] for _ in batches]

    def work(number: int) -> None:
        together[number] += [answer(batches[number]) for _ in range(10)]

    threads = [threading.Thread(target=work, args=(number,)) for number in range(len(batches))]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    for expected, answers in zip(alone, together, strict=True):
        assert len(answers) == 10
        assert all(all(map(torch.equal, expected, found)) for found in answers)


@given(st.integers(0, 2**32), st.sampled_from([1e-30, 1e5, 1e12]))
def test_extreme_states_give_numbers(seed: int, scale: float) -> None:
    """Neither tiny nor huge states make a NaN or an infinity of an output."""
    _, _, model = _models(SIZES[0])
    items, lengths = _draw(seed, 9, 3)
    generator = torch.Generator().manual_seed(seed)
    before = scale * torch.randn(9, 3, 12, dtype=torch.complex64, generator=generator)

    states, outputs = model.advance(before, items, lengths)

    assert bool(torch.isfinite(torch.view_as_real(states)).all())
    assert bool(torch.isfinite(outputs).all())


@pytest.mark.parametrize("mode", [torch.inference_mode, torch.enable_grad])
def test_tensors_of_any_mode_and_layout_are_taken(mode: type) -> None:
    """Inference tensors and views with other strides mean what they hold; none is written to."""
    _, by_torch, by_native = _models(SIZES[0])
    with mode():
        state = torch.randn(12, 3, 6, dtype=torch.complex64).transpose(0, 2)
        # What lies between would do as well: it is not refused, and means something else.
        items = torch.tensor([1, 6, 2, 5, 3, 4, 4, 3, 5, 2, 6, 1, 7, 2])[::2]
        lengths = torch.tensor([[1, 2], [1, 1], [1, 1], [1, 1], [1, 1], [2, 1]])[:, 0]
        kept = [tensor.clone() for tensor in (state, items, lengths)]

        states, outputs = by_native.advance(state, items, lengths)
        n_items = by_torch.scores(outputs).shape[1] - 1
        excluded = torch.arange(1, 9).view(2, 4).t()  # of 4 users
        unavailable = (torch.arange(2 * n_items + 2) % 10 == 4)[::2]
        kinds = [(None, None), (excluded, None), (None, unavailable), (excluded, unavailable)]
        best = [by_native.top_k(outputs[::2], 3, *kind)[1] for kind in kinds]

        expected_states, expected = by_torch.advance(state, items, lengths)
        assert (states - expected_states).abs().max() < TOLERANCE
        assert (outputs - expected).abs().max() < TOLERANCE
        for items_of_kind, kind in zip(best, kinds, strict=True):
            assert torch.equal(items_of_kind, by_torch.top_k(outputs[::2], 3, *kind)[1])
        assert all(map(torch.equal, kept, (state, items, lengths)))


def test_the_error_function_is_within_its_bound() -> None:
    """Within 5e-7 of the true one everywhere, odd, and exactly 1 far out."""
    z = torch.cat((torch.linspace(-6, 6, 1 << 20), torch.tensor([0.0, -1e30, 1e30, 1e-30] * 4)))

    y = _native().erf(z)

    assert (y.double() - torch.erf(z.double())).abs().max() < 5e-7
    assert torch.equal(_native().erf(-z), -y)
    assert y[-3:].tolist()[:2] == [-1, 1]


@given(
    seed=st.integers(0, 2**32),
    users=st.integers(0, 15),
    n_items=st.one_of(st.integers(1, 90), st.integers(2000, 5000)),
    width=st.integers(1, 9),
    k=st.one_of(st.integers(1, 12), st.integers(30, 200)),
    n_excluded=st.integers(0, 40),
    levels=st.sampled_from([2, 200]),
    order=st.sampled_from([None, 1, -1]),
    first_pass=st.sampled_from(["floats", "bytes"]),
)
def test_native_top_k_equals_sorting_every_score(
    seed: int,
    users: int,
    n_items: int,
    width: int,
    k: int,
    n_excluded: int,
    levels: int,
    order: int | None,
    first_pass: Literal["floats", "bytes"],
) -> None:
    """The very lists of a full stable sort: of equal scores, the lower item comes first."""
    rng = np.random.default_rng(seed)
    # Whole numbers, so that scores are exact and ties are real.
    outputs = rng.integers(-levels, levels + 1, (users, width))
    weight = rng.integers(-levels, levels + 1, (n_items + 1, width))
    bias = rng.integers(-levels, levels + 1, n_items + 1)
    if order is not None:  # scores that rise or fall with the item
        bias, weight = order * np.arange(n_items + 1), 0 * weight
    excluded = rng.integers(0, n_items + 1, (users, n_excluded))
    unavailable = rng.random(n_items + 1) < 0.2
    catalogue = NativeCatalogue(
        _native(),
        torch.tensor(weight, dtype=torch.float32),
        torch.tensor(bias, dtype=torch.float32),
        first_pass,
    )

    found = catalogue.top_k(
        torch.tensor(outputs, dtype=torch.float32),
        k,
        torch.tensor(excluded),
        torch.tensor(unavailable),
    )

    assert found is not None
    scores, items = found
    assert scores.shape == items.shape == (users, k)
    every_score = (outputs @ weight.T + bias).astype(float)
    for user in range(users):
        every_score[user, [0, *excluded[user], *np.flatnonzero(unavailable)]] = -math.inf
        best = np.argsort(-every_score[user], kind="stable")[:k]
        best = best[np.isfinite(every_score[user, best])]
        missing = k - len(best)
        assert items[user].tolist() == [*best, *[0] * missing]
        assert scores[user].tolist() == [*every_score[user, best], *[-math.inf] * missing]


@given(st.integers(0, 2**32), st.integers(1, 20), st.integers(1, 20))
def test_native_scores_keep_within_their_bound(seed: int, users: int, k: int) -> None:
    """Lists are exact up to the stated rounding of scores, against double precision."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(users, 64, generator=generator)
    weight, bias = (
        torch.randn(3000, 64, generator=generator),
        torch.randn(3000, generator=generator),
    )
    excluded = torch.randint(1, 3000, (users, 50), generator=generator)

    found = NativeCatalogue(_native(), weight, bias).top_k(outputs, k, excluded, None)

    assert found is not None
    exact = outputs.double() @ weight.double().t() + bias
    bound = 65 * 2**-24 * (outputs.abs().double() @ weight.abs().double().t() + bias.abs())
    exact[:, 0] = -math.inf
    exact.scatter_(1, excluded, -math.inf)
    scores, items = found
    assert ((scores - exact.gather(1, items)).abs() <= bound.gather(1, items)).all()
    assert ((exact.topk(k).values - scores).abs() <= bound.max()).all()


@given(st.integers(0, 2**32), st.integers(1, 30))
def test_a_users_list_is_the_same_in_any_batch(seed: int, users: int) -> None:
    """Alone or among others, a user gets the same items with the same bits of scores."""
    generator = torch.Generator().manual_seed(seed)
    outputs = torch.randn(users, 64, generator=generator)
    weight, bias = torch.randn(2500, 64, generator=generator), torch.randn(2500)
    catalogue = NativeCatalogue(_native(), weight, bias)

    together = catalogue.top_k(outputs, 10, None, None)
    alone = [catalogue.top_k(output[None], 10, None, None) for output in outputs]

    assert together is not None
    for user, found in enumerate(alone):
        assert found is not None
        assert torch.equal(found[0][0], together[0][user])
        assert torch.equal(found[1][0], together[1][user])
