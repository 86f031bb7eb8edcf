"""The k best items of every user, exactly: four ways, three catalogues, few users and many.

    python -m tests.benchmarks.bench_topk [--k N] [--threads N] [--seconds S] [--json FILE]
        [--plot FILE.svg]

- GEMM + topk: every score into one matrix, then torch's topk; what one would write first.
- torch: `models.serving.top_k`, blocks of items and two rounds; what runs without a compiler.
- native: `models.serving.native_top_k`, scores that never leave the cache.
- bytes: the same by a first pass over a quarter of the memory; what serves large catalogues where
  the processor multiplies bytes. Its lists are held against those of native to the bit.

All get the same 64 numbers a user and leave out 50 items of each. They take turns, in both orders,
and every list is held against that of GEMM + topk; medians, in microseconds a user.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.serving.native import NativeServing, load_native_serving
from models.serving.native_top_k import NativeCatalogue
from models.serving.top_k import top_k
from tests.benchmarks.plot import Panel, write_lines
from tests.benchmarks.report import machine, write_json

ITEMS = (3_400, 60_000, 1_000_000)
USERS = (1, 8, 256)
WIDTH, EXCLUDED = 64, 50
MIN_ROUNDS, MAX_ROUNDS = 3, 300
TOLERANCE = 1e-4
"""Of scores of about 30, in single precision."""

Lists = tuple[Tensor, Tensor]


def ways(native: NativeServing, n_items: int, users: int, k: int) -> dict[str, Callable[[], Lists]]:
    """Make the four ways over one random catalogue."""
    generator = torch.Generator().manual_seed(n_items + users)
    weight = torch.randn(n_items + 1, WIDTH, generator=generator)
    weight = weight.t().contiguous().t()  # as serving keeps it
    bias = torch.randn(n_items + 1, generator=generator)
    outputs = torch.randn(users, WIDTH, generator=generator)
    excluded = torch.randint(0, n_items + 1, (users, EXCLUDED), generator=generator)
    by_floats, by_bytes = (
        NativeCatalogue(native, weight, bias, first_pass) for first_pass in ("floats", "bytes")
    )

    def gemm_and_topk() -> Lists:
        scores = torch.addmm(bias, outputs, weight.t())
        scores[:, 0] = -torch.inf
        scores.scatter_(1, excluded, -torch.inf)
        best = scores.topk(k)
        return best.values, best.indices

    def by_native(catalogue: NativeCatalogue) -> Lists:
        lists = catalogue.top_k(outputs, k, excluded, None)
        assert lists is not None
        return lists

    return {
        "gemm_topk": gemm_and_topk,
        "torch": lambda: top_k(outputs, weight, bias, k, excluded, None),
        "native": lambda: by_native(by_floats),
        "bytes": lambda: by_native(by_bytes),
    }


def measure(cases: dict[str, Callable[[], Lists]], seconds: float) -> dict[str, float]:
    """Time the ways in turns; the median of each in microseconds."""
    expected = cases["gemm_topk"]()[0]
    for name, case in cases.items():  # warm-up, and the proof that all do the same
        difference = float((case()[0] - expected).abs().max())
        assert difference < TOLERANCE, f"{name}: scores differ by {difference}"
    assert all(map(torch.equal, cases["native"](), cases["bytes"]()))
    times: dict[str, list[float]] = {name: [] for name in cases}
    started, rounds = time.perf_counter(), 0
    while rounds < MIN_ROUNDS or (rounds < MAX_ROUNDS and time.perf_counter() - started < seconds):
        for name, case in (reversed if rounds % 2 else iter)(cases.items()):
            if expected.shape[0] < USERS[-1]:
                case()  # a short one warm: what ran before has emptied the caches
            begun = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - begun)
        rounds += 1
    return {name: 1e6 * statistics.median(spans) for name, spans in times.items()}


def draw_plot(path: Path, rows: list[dict[str, Any]], k: int, threads: int) -> None:
    """Draw what an item costs by every way, over the size of the catalogue."""
    panels = []
    for users in dict.fromkeys(row["users"] for row in rows):
        sizes = [row for row in rows if row["users"] == users]
        panels.append(
            Panel(
                title=f"ns a user and item, batches of {users}; logarithmic",
                x="items",
                lines={
                    name: [
                        (row["items"], 1000 * row["us_a_user"][name] / row["items"])
                        for row in sizes
                    ]
                    for name in sizes[0]["us_a_user"]
                },
                log_x=True,
                log_y=True,
                height=150,
            )
        )
    write_lines(path, f"The {k} best items, exactly, threads: {threads}", panels)


@torch.inference_mode()
def main() -> None:
    """Measure, print the table and write it where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--k", type=int, default=10, help="items of a list")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--seconds", type=float, default=4.0, help="time for each size")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plot", type=Path, help="where to draw them, as SVG")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    rows: list[dict[str, Any]] = []
    print(f"{machine()}\n{arguments.threads} thread(s), k = {arguments.k}; us a user")
    names = " ".join(f"{name:>10}" for name in ("GEMM+topk", "torch", "native", "bytes"))
    print(f"{'items':>9} {'users':>5} {names} {'ratio':>6}")
    with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as folder:
        native = load_native_serving(Path(folder))
    for n_items in ITEMS:
        for users in USERS:
            spans = measure(ways(native, n_items, users, arguments.k), arguments.seconds)
            figures = {name: span / users for name, span in spans.items()}
            ratio = figures["gemm_topk"] / min(figures["native"], figures["bytes"])
            rows.append({"items": n_items, "users": users, "us_a_user": figures, "ratio": ratio})
            shown = " ".join(f"{figure:10.1f}" for figure in figures.values())
            print(f"{n_items:9,} {users:5} {shown} {ratio:6.1f}", flush=True)
    write_json(arguments.json, {"threads": arguments.threads, "k": arguments.k, "sizes": rows})
    if arguments.plot is not None:
        draw_plot(arguments.plot, rows, arguments.k, arguments.threads)


if __name__ == "__main__":
    main()
