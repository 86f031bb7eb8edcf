"""Laws of a scan, the same for every form: values, gradients, cuts, lengths, bits.

Triton's kernels run on a GPU where there is one, else in its interpreter on the CPU.
"""

import sys
from collections.abc import Callable, Iterator

import pytest
import torch
from hypothesis import given, settings
from hypothesis import strategies as st
from torch import Tensor

from models.scan import (
    PackedLayout,
    scan,
    scan_doubling,
    scan_reference,
    use_backend,
)
from models.scan.loop import LoopScan
from models.scan.native import load_native
from models.scan.recurrence import Backend
from tests.devices import HAS_GPU, OnGpu
from tests.fake_gpu import FakeGpu

Scan = Callable[[Tensor, Tensor, Tensor, Tensor], tuple[Tensor, Tensor]]

FOR_CUDA = ["triton", "triton in chunks"] if sys.platform == "linux" else []
"""There is no Triton but on Linux."""
FORMS = ["loop", "native", *FOR_CUDA]
MANY_ROWS = 100_000 if HAS_GPU else 100
"""For forms for CUDA: the interpreter takes a millisecond for every row."""

FLOAT32 = 1e-5
"""Largest error beside the double-precision loop, relative to the largest number: some tens of
roundings of 6e-8. |lambda| < 1 keeps them from adding up over any length."""
FLOAT64 = 1e-12


@pytest.fixture(scope="module")
def backends(tmp_path_factory: pytest.TempPathFactory) -> Iterator[dict[str, Backend]]:
    """Every form by its name."""
    made: dict[str, Backend] = {
        "loop": LoopScan(),
        "native": load_native(tmp_path_factory.mktemp("native")),
    }
    if not FOR_CUDA:
        yield made
        return
    with pytest.MonkeyPatch.context() as patch:
        if not HAS_GPU:
            patch.setenv("TRITON_INTERPRET", "1")  # Triton looks at every launch
        from models.scan import triton_kernels
        from models.scan.triton_scan import TritonScan

        if not HAS_GPU:
            patch.setattr(triton_kernels, "AHEAD", 2)  # rows that are none cost as much there
        for name, chunk in zip(FOR_CUDA, (None, 4), strict=True):
            form = TritonScan(chunk=chunk, device_type="cuda" if HAS_GPU else "cpu")
            made[name] = OnGpu(form) if HAS_GPU else form
        yield made


@pytest.fixture(params=FORMS)
def backend(request: pytest.FixtureRequest, backends: dict[str, Backend]) -> Iterator[Backend]:
    """One form, by which `scan` runs during the test."""
    chosen = backends[request.param]
    with use_backend(chosen):
        yield chosen


@st.composite
def problems(draw: st.DrawFn) -> tuple[Tensor, ...]:
    """Draw u, lambda, h0 and lengths; |lambda| down to 0 and up to 0.9999, 1 to 5 channels."""
    lengths = draw(st.lists(st.integers(1, 12), min_size=1, max_size=6))
    channels = draw(st.integers(1, 5))
    radii = st.sampled_from([0.0, 1e-30, 0.1, 0.8, 0.99, 0.9999])
    radius = draw(st.lists(radii, min_size=channels, max_size=channels))
    generator = torch.Generator().manual_seed(draw(st.integers(0, 2**32)))
    u, h0 = (
        torch.randn(n, channels, dtype=torch.complex64, generator=generator)
        for n in (sum(lengths), len(lengths))
    )
    angle = 6.2832 * torch.rand(channels, generator=generator)
    return u, torch.polar(torch.tensor(radius), angle), h0, torch.tensor(lengths)


def values_and_gradients(form: Scan, *inputs: Tensor) -> list[Tensor]:
    """Return h, the last states, and the gradients in u, lambda and h0 of a fixed function."""
    *tensors, lengths = inputs
    leaves = [x.detach().requires_grad_() for x in tensors]
    h, last = form(*leaves, lengths)
    generator = torch.Generator().manual_seed(7)
    weight = torch.randn(h.shape, dtype=torch.complex128, generator=generator).to(h.dtype)
    loss = (h * weight).abs().square().sum() + last.abs().square().sum()
    return [x.detach() for x in (h, last, *torch.autograd.grad(loss, leaves))]


def assert_close(got: list[Tensor], expected: list[Tensor], tolerance: float) -> None:
    """Compare tensor by tensor, relative to the largest number of each."""
    for one, other in zip(got, expected, strict=True):
        assert one.shape == other.shape
        assert (one - other).abs().max() <= tolerance * (1 + other.abs().max())


def law_of_single_precision(*problem: Tensor) -> None:
    """Values and gradients are those of the double-precision loop."""
    expected = values_and_gradients(scan_reference, *problem)

    assert_close(values_and_gradients(scan, *problem), expected, FLOAT32)


def law_of_double_precision(*problem: Tensor) -> None:
    """In complex128 they are so to the last digits."""
    *tensors, lengths = problem
    doubles = [x.to(torch.complex128) for x in tensors]

    got = values_and_gradients(scan, *doubles, lengths)

    assert_close(got, values_and_gradients(scan_reference, *doubles, lengths), FLOAT64)


def law_of_cuts(*problem: Tensor) -> None:
    """Scanning all heads, then all tails from the heads' last states, is one scan."""
    u, lam, h0, lengths = problem
    cuts = lengths // 2 + torch.arange(len(lengths)) % 2 * (lengths > 1)
    rows = torch.cat([torch.arange(n) for n in lengths.tolist()])
    is_head = rows < torch.repeat_interleave(cuts, lengths)
    h, carried = torch.empty_like(u), h0.clone()

    for chosen, counts in ((is_head, cuts), (~is_head, lengths - cuts)):
        there = counts > 0
        h[chosen], carried[there] = scan(u[chosen], lam, carried[there], counts[there])

    assert_close([h, carried], list(scan(*problem)), FLOAT32)


def law_of_bits(*problem: Tensor) -> None:
    """The same input gives the same bits, wherever it lies in memory."""
    once = values_and_gradients(scan, *problem)

    again = values_and_gradients(scan, *(x.clone() for x in problem))

    assert all(torch.equal(one, other) for one, other in zip(once, again, strict=True))


LAWS = pytest.mark.parametrize(
    "law", [law_of_single_precision, law_of_double_precision, law_of_cuts, law_of_bits]
)
Law = Callable[..., None]


@LAWS
@pytest.mark.parametrize("form", ["loop", "native"])
@given(problem=problems())
def test_forms_for_the_cpu_keep_the_laws(
    law: Law, form: str, backends: dict[str, Backend], problem: tuple[Tensor, ...]
) -> None:
    """Those by which a scan runs where there is no GPU."""
    with use_backend(backends[form]):
        law(*problem)


@LAWS
@pytest.mark.parametrize("form", FOR_CUDA)
@settings(max_examples=50 if HAS_GPU else 3)
@given(problem=problems())
def test_kernels_for_cuda_keep_the_laws(
    law: Law, form: str, backends: dict[str, Backend], problem: tuple[Tensor, ...]
) -> None:
    """The same, on a GPU or in Triton's interpreter."""
    with use_backend(backends[form]):
        law(*problem)


@pytest.mark.parametrize("chunk", FOR_CUDA and [None, 4])
def test_where_rows_lie_is_told_to_a_gpu_without_waiting(
    chunk: int | None, backends: dict[str, Backend]
) -> None:
    """A wait in every batch would keep the CPU from launching the next while the GPU works."""
    from models.scan.triton_scan import TritonScan

    layout = PackedLayout.from_lengths(torch.tensor([9, 3, 20]))
    with FakeGpu() as gpu:
        pieces, _ = TritonScan(chunk)._plan(layout.rows, torch.empty(32, 2**14, device="cuda"))

    assert pieces.first.device.type == "cuda"
    assert len(pieces) == (3 if chunk is None else 9)
    assert gpu.waits == []


@pytest.mark.parametrize("form", ["loop", "native"])
def test_the_number_of_threads_changes_no_bit(form: str, backends: dict[str, Backend]) -> None:
    """One thread, two and five give the same values and gradients."""
    torch.manual_seed(0)
    lengths = torch.randint(1, 60, (37,))
    u, h0 = (torch.randn(n, 150, dtype=torch.complex64) for n in (int(lengths.sum()), 37))
    lam = torch.polar(torch.full((150,), 0.97), torch.rand(150))
    before = torch.get_num_threads()
    results = []
    gradient = torch.randn_like(u)

    try:
        for threads in (1, 2, 5):
            torch.set_num_threads(threads)
            leaves = [x.clone().requires_grad_() for x in (u, lam, h0)]
            with use_backend(backends[form]):
                h, last = scan(*leaves, lengths)
            results.append([h, last, *torch.autograd.grad(h, leaves, gradient)])
    finally:
        torch.set_num_threads(before)

    for other in results[1:]:
        assert all(torch.equal(x, y) for x, y in zip(results[0], other, strict=True))


@pytest.mark.parametrize("threads", [1, 3])
def test_many_segments_are_each_moved_once(threads: int, backends: dict[str, Backend]) -> None:
    """However the compiled form cuts a batch into tiles: at shares of threads, or where it must."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.randint(1, 9, (300,), generator=generator)
    u, h0 = (
        torch.randn(n, 150, dtype=torch.complex128, generator=generator)
        for n in (int(lengths.sum()), 300)
    )
    lam = torch.polar(torch.full((150,), 0.97), torch.rand(150, generator=generator)).to(u.dtype)
    before = torch.get_num_threads()

    try:
        torch.set_num_threads(threads)
        with use_backend(backends["native"]):
            got = values_and_gradients(scan, u, lam, h0, lengths)
    finally:
        torch.set_num_threads(before)

    with use_backend(backends["loop"]):  # held to the reference above
        assert_close(got, values_and_gradients(scan, u, lam, h0, lengths), FLOAT64)


@pytest.mark.parametrize(
    ("form", "length"),
    [("loop", 100_000), ("native", 100_000), *((form, MANY_ROWS) for form in FOR_CUDA)],
)
def test_a_long_segment_beside_short_ones_stays_exact(
    form: str, length: int, backends: dict[str, Backend]
) -> None:
    """No error grows with the length, with |lambda| next to 1 and next to 0."""
    generator = torch.Generator().manual_seed(0)
    lengths = torch.tensor([3, length, 1, 40])
    u, h0 = (
        torch.randn(n, 3, dtype=torch.complex64, generator=generator)
        for n in (int(lengths.sum()), 4)
    )
    lam = torch.polar(torch.tensor([1e-6, 0.9, 0.9999]), torch.tensor([1.0, 2.0, 3.0]))
    doubles = [x.to(torch.complex128) for x in (u, lam, h0)]
    with use_backend(backends["loop"]):  # held to the reference above
        expected = values_and_gradients(scan, *doubles, lengths)

    with use_backend(backends[form]):
        got = values_and_gradients(scan, u, lam, h0, lengths)

    assert_close(got, expected, 10 * FLOAT32)


@pytest.mark.parametrize("length", [2, 3, 64, 100])
def test_doubling_and_the_other_forms_agree(length: int, backend: Backend) -> None:
    """The published form over a padded batch, gradients in u and lambda included."""
    torch.manual_seed(0)
    lengths = torch.tensor([length, 1])
    u = torch.randn(length + 1, 3, dtype=torch.complex64)
    lam, h0 = torch.full((3,), 0.7 + 0.6j), torch.zeros(2, 3, dtype=torch.complex64)
    real = torch.ones(2, length, dtype=torch.bool)
    real[1, :-1] = False

    def doubling(u: Tensor, lam: Tensor, h0: Tensor, _: Tensor) -> tuple[Tensor, Tensor]:
        padded = u.new_zeros(2, length, 3).masked_scatter(real[..., None], u)
        h = scan_doubling(padded, lam, real)
        return h[real], h[:, -1] + 0 * h0

    got, expected = (values_and_gradients(f, u, lam, h0, lengths) for f in (scan, doubling))
    assert_close(got[:4], expected[:4], FLOAT32)


def test_inputs_may_lie_in_any_way(backend: Backend) -> None:
    """Strided, conjugated and negated tensors give what their plain copies give."""
    torch.manual_seed(0)
    lengths = torch.tensor([2, 5, 1])
    u = torch.randn(3, 16, dtype=torch.complex64).t()[::2].conj()
    lam = torch.randn(6, dtype=torch.complex64)[::2].conj() / 4
    h0 = torch.randn(3, 6, dtype=torch.complex64)[:, ::2]._neg_view()
    plain = [x.resolve_conj().resolve_neg().contiguous() for x in (u, lam, h0)]

    got = values_and_gradients(scan, u, lam, h0, lengths)

    for one, other in zip(got, values_and_gradients(scan, *plain, lengths), strict=True):
        assert torch.equal(one, other)


def test_no_rows_and_no_channels_pass(backend: Backend) -> None:
    """An empty batch, and one of no channels, have empty results and gradients."""
    for rows, channels, lengths in ((0, 2, []), (3, 0, [1, 2])):
        u = torch.zeros(rows, channels, dtype=torch.complex64, requires_grad=True)
        h0 = torch.zeros(len(lengths), channels, dtype=torch.complex64)
        lam = torch.ones(channels, dtype=torch.complex64)

        h, last = scan(u, lam, h0, torch.tensor(lengths, dtype=torch.int64))
        h.abs().sum().backward()

        assert h.shape == (rows, channels)
        assert last.shape == (len(lengths), channels)


@pytest.mark.filterwarnings("ignore:invalid value:RuntimeWarning")  # numpy, in the interpreter
def test_infinity_and_nan_pass_through(backend: Backend) -> None:
    """What is not finite stays so to the end of its segment and reaches no other one."""
    u = torch.ones(6, 2, dtype=torch.complex64)
    u[0, 0], u[1, 1] = torch.inf, torch.nan
    lam, h0 = torch.full((2,), 0.5 + 0j), torch.zeros(2, 2, dtype=torch.complex64)

    h, _ = scan(u, lam, h0, torch.tensor([3, 3]))

    assert not h[:3, 0].isfinite().any()
    assert h[1:3, 1].isnan().all()
    assert h[3:].isfinite().all()


def test_a_second_derivative_is_refused(backend: Backend) -> None:
    """It would be wrong; torch says so instead."""
    u = torch.ones(2, 1, dtype=torch.complex64, requires_grad=True)
    lam, h0 = torch.full((1,), 0.5 + 0j), torch.zeros(1, 1, dtype=torch.complex64)
    h, _ = scan(u, lam, h0, torch.tensor([2]))
    (first,) = torch.autograd.grad(h.abs().square().sum(), u, create_graph=True)

    with pytest.raises(RuntimeError, match="differentiate twice"):
        first.abs().sum().backward()


@pytest.mark.parametrize("wrong", ["lengths", "a length", "lam", "h0", "a state more", "dtype"])
def test_what_does_not_fit_is_refused(wrong: str, backend: Backend) -> None:
    """No form reads beyond what it was given."""
    u, lam, h0 = (torch.zeros(shape, dtype=torch.complex64) for shape in ((3, 2), (2,), (2, 2)))
    lengths = torch.tensor([2, 1])
    if wrong == "lengths":
        lengths = torch.tensor([2, 2])
    elif wrong == "a length":
        lengths = torch.tensor([3, 0])
    elif wrong == "lam":
        lam = lam[:1]
    elif wrong == "h0":
        h0 = h0[:, :1]
    elif wrong == "a state more":
        h0 = h0[[0, 1, 1]]
    else:
        h0 = h0.to(torch.complex128)

    with pytest.raises(ValueError, match="must"):
        scan(u, lam, h0, lengths)
