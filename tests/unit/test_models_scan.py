"""The recurrence's edges; its laws are in tests/property."""

import pytest
import torch

from models.scan import PackedLayout, scan, scan_reference, scan_time_major, step


def test_autograd_agrees_with_finite_differences() -> None:
    """Torch's own check of a gradient, complex convention included, passes for all three inputs."""
    torch.manual_seed(0)
    u, h0 = (torch.randn(n, 2, dtype=torch.complex128, requires_grad=True) for n in (7, 3))
    lam = torch.polar(torch.rand(2).double(), torch.rand(2).double()).requires_grad_()
    lengths = torch.tensor([2, 1, 4])

    assert torch.autograd.gradcheck(lambda *inputs: scan(*inputs, lengths), (u, lam, h0))


def test_a_gradient_may_come_in_any_layout() -> None:
    """A conjugated, transposed gradient gives what its plain copy gives."""
    torch.manual_seed(0)
    u = torch.randn(4, 4, dtype=torch.complex64, requires_grad=True)
    lam = torch.full((4,), 0.5 + 0.5j)
    layout = PackedLayout.from_lengths(torch.tensor([3, 1]))
    gradient = torch.randn(4, 4, dtype=torch.complex64)

    h = scan_time_major(u, lam, None, layout)
    (got,) = torch.autograd.grad(h, u, gradient.t().conj(), retain_graph=True)

    (expected,) = torch.autograd.grad(h, u, gradient.t().conj().resolve_conj().contiguous())
    assert torch.equal(got, expected)


def test_a_step_is_the_recurrence() -> None:
    """One step by hand: u + lambda h."""
    u, lam, h = (torch.tensor(x) for x in ([[1 + 1j]], [0.5j], [[2 + 0j]]))

    assert step(u, lam, h).tolist() == [[1 + 2j]]


def test_the_inputs_stay_as_they_were() -> None:
    """Neither scan nor step writes to a tensor it was given."""
    torch.manual_seed(0)
    inputs = [torch.randn(*shape, dtype=torch.complex64) for shape in ((3, 2), (2,), (2, 2))]
    copies = [x.clone() for x in inputs]

    scan(*inputs, torch.tensor([2, 1]))
    step(inputs[2], inputs[1], inputs[2])

    assert all(torch.equal(x, copy) for x, copy in zip(inputs, copies, strict=True))


@pytest.mark.parametrize("form", [scan, scan_reference])
def test_no_segments_give_no_rows(form: object) -> None:
    """An empty batch passes through both forms."""
    empty = torch.zeros(0, 2, dtype=torch.complex64)

    h, last = form(empty, torch.ones(2, dtype=torch.complex64), empty, torch.zeros(0).long())  # type: ignore[operator]  # one of the two scans

    assert h.shape == last.shape == (0, 2)


def test_lengths_must_cover_the_rows() -> None:
    """A wrong sum is refused with both numbers."""
    u = torch.zeros(3, 1, dtype=torch.complex64)

    with pytest.raises(ValueError, match="add up to the 3 rows of u, got 2"):
        scan(u, u[0], u[:1], torch.tensor([2]))


def test_a_segment_must_have_a_row() -> None:
    """A length of 0 is refused: its last state would have no row."""
    with pytest.raises(ValueError, match="at least 1 row, got a length of 0"):
        PackedLayout.from_lengths(torch.tensor([2, 0]))
