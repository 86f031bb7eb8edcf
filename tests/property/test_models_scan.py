"""Laws of the recurrence: every form computes the same numbers, however a sequence is cut."""

import torch
from hypothesis import given
from hypothesis import strategies as st
from torch import Tensor

from models.scan import (
    PackedLayout,
    scan,
    scan_doubling,
    scan_reference,
    scan_time_major,
    step,
)

COMPLEX64_TOLERANCE = 2e-5
"""States are below 20 here, and rounding does not grow with length because |lambda| < 1."""

COMPLEX128_TOLERANCE = 1e-12

LENGTHS = st.lists(st.integers(1, 17), min_size=1, max_size=6)


def _inputs(seed: int, lengths: list[int], dtype: torch.dtype) -> tuple[Tensor, ...]:
    """Draw u, lambda with |lambda| in 0.5..0.95, h0 and the lengths, for 3 channels."""
    generator = torch.Generator().manual_seed(seed)
    t, s, c = sum(lengths), len(lengths), 3
    u, h0 = (torch.randn(n, c, dtype=dtype, generator=generator) for n in (t, s))
    radius, angle = torch.rand(2, c, dtype=torch.float64, generator=generator)
    lam = torch.polar(0.5 + 0.45 * radius, 6.2832 * angle).to(dtype)
    return u, lam, h0, torch.tensor(lengths)


@given(st.integers(0, 2**32), LENGTHS)
def test_scan_equals_the_reference(seed: int, lengths: list[int]) -> None:
    """Values agree with the slow double-precision loop in both precisions."""
    inputs = _inputs(seed, lengths, torch.complex64)

    h, last = scan(*inputs)

    expected_h, expected_last = scan_reference(*inputs)
    assert (h - expected_h).abs().max() < COMPLEX64_TOLERANCE
    assert (last - expected_last).abs().max() < COMPLEX64_TOLERANCE
    u, lam, h0, segments = inputs
    doubles = (u.to(torch.complex128), lam.to(torch.complex128), h0.to(torch.complex128), segments)
    assert (scan(*doubles)[0] - expected_h).abs().max() < COMPLEX128_TOLERANCE


@given(st.integers(0, 2**32), LENGTHS)
def test_gradients_of_scan_equal_those_of_the_reference(seed: int, lengths: list[int]) -> None:
    """The hand-written backward pass agrees with autograd through the reference."""
    *inputs, segments = _inputs(seed, lengths, torch.complex128)
    generator = torch.Generator().manual_seed(seed)
    weights = [
        torch.randn(n, 3, dtype=torch.complex128, generator=generator)
        for n in (sum(lengths), len(lengths))
    ]

    def gradients(form: object) -> tuple[Tensor, ...]:
        leaves = [x.clone().requires_grad_() for x in inputs]
        results = form(*leaves, segments)  # type: ignore[operator]  # one of the two scans
        loss = sum((w * x).abs().square().sum() for w, x in zip(weights, results, strict=True))
        assert isinstance(loss, Tensor)
        return torch.autograd.grad(loss, leaves)

    for got, expected in zip(gradients(scan), gradients(scan_reference), strict=True):
        assert (got - expected).abs().max() < COMPLEX128_TOLERANCE * (1 + expected.abs().max())


@given(st.integers(0, 2**32), LENGTHS)
def test_steps_equal_the_scan(seed: int, lengths: list[int]) -> None:
    """Single steps, each from the state of the one before, give the scan's every row."""
    u, lam, h0, segments = _inputs(seed, lengths, torch.complex64)

    rows = []
    for inputs, state in zip(torch.split(u, lengths), h0, strict=True):
        h = state[None]
        for row in inputs:
            h = step(row[None], lam, h)
            rows.append(h)

    assert (torch.cat(rows) - scan(u, lam, h0, segments)[0]).abs().max() < COMPLEX64_TOLERANCE


@given(st.integers(0, 2**32), st.integers(2, 40), st.data())
def test_a_sequence_may_be_cut_anywhere(seed: int, length: int, data: st.DataObject) -> None:
    """Scanning a head, then the tail from the head's last state, equals one scan."""
    cut = data.draw(st.integers(1, length - 1))
    u, lam, h0, segments = _inputs(seed, [length], torch.complex64)

    head, carried = scan(u[:cut], lam, h0, torch.tensor([cut]))
    tail, last = scan(u[cut:], lam, carried, torch.tensor([length - cut]))

    whole, whole_last = scan(u, lam, h0, segments)
    assert (torch.cat((head, tail)) - whole).abs().max() < COMPLEX64_TOLERANCE
    assert (last - whole_last).abs().max() < COMPLEX64_TOLERANCE


@given(st.integers(0, 2**32), LENGTHS, st.integers(0, 9))
def test_doubling_over_padding_equals_the_reference(
    seed: int, lengths: list[int], extra: int
) -> None:
    """The published form agrees at real positions, and a pad's state is its own input alone."""
    u, lam, h0, segments = _inputs(seed, lengths, torch.complex128)
    padded_length = max(lengths) + extra
    real = torch.tensor([[False] * (padded_length - n) + [True] * n for n in lengths])
    padded = torch.ones(len(lengths), padded_length, 3, dtype=u.dtype)
    padded[real] = u

    h = scan_doubling(padded, lam, real)

    expected, _ = scan_reference(u, lam, torch.zeros_like(h0), segments)
    assert (h[real] - expected).abs().max() < COMPLEX128_TOLERANCE
    assert torch.equal(h[~real], padded[~real])


@given(LENGTHS)
def test_the_layout_leads_there_and_back(lengths: list[int]) -> None:
    """Time-major rows hold the packed positions step by step, longest segment first."""
    layout = PackedLayout.from_lengths(torch.tensor(lengths))

    positions = [(segment, now) for segment, n in enumerate(lengths) for now in range(n)]
    ranked = sorted(range(len(lengths)), key=lambda segment: -lengths[segment])
    expected = [
        (segment, now)
        for now in range(max(lengths))
        for segment in ranked
        if now < lengths[segment]
    ]
    assert [positions[row] for row in layout.to_time_major] == expected
    assert [expected[row] for row in layout.to_packed] == positions
    assert layout.order.tolist() == ranked
    assert layout.order[layout.rank].tolist() == list(range(len(lengths)))
    assert [expected[row] for row in layout.last_rows] == [(s, lengths[s] - 1) for s in ranked]
    assert layout.batch_sizes == tuple(sum(n > now for n in lengths) for now in range(max(lengths)))


@given(st.integers(0, 2**32), LENGTHS)
def test_no_initial_state_means_zero(seed: int, lengths: list[int]) -> None:
    """Without h0 the time-major scan gives what a zero h0 gives, gradients included."""
    u, lam, h0, segments = _inputs(seed, lengths, torch.complex128)
    layout = PackedLayout.from_lengths(segments)
    u.requires_grad_()
    lam.requires_grad_()

    h = scan_time_major(u, lam, None, layout)

    expected = scan_time_major(u, lam, torch.zeros_like(h0), layout)
    assert torch.equal(h, expected)
    for got, wanted in zip(
        torch.autograd.grad(h.abs().sum(), (u, lam)),
        torch.autograd.grad(expected.abs().sum(), (u, lam)),
        strict=True,
    ):
        assert torch.equal(got, wanted)
