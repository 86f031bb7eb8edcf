"""Every form of the scan for this CPU, forwards and backwards, beside the speed of memory.

    python -m tests.benchmarks.bench_scan [--batch N] [--channels N] [--lengths N,N,...]
        [--rounds N] [--threads N] [--json FILE] [--plot FILE.svg]
    python -m tests.benchmarks.bench_scan --device cuda [--rounds N] [--json FILE]

The second form measures a GPU, see `tests.benchmarks.gpu_scan`; the rest is about the first.

Times the values and the gradients in u, lambda and h0 of sequences of one length, by recursive
doubling (the published form), by the loop of torch operations and by native code. The floor is five
passes over memory (read u, write h; read the gradient and h, write that in u), each as long as half
a copy of as many bytes. Forms take turns, so that a busy machine is busy for all of them; figures
are medians, with the best round beside it. Without a C++ compiler the native form is left out. The
plot shows the time of a row over the length.
"""

import argparse
import statistics
import tempfile
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path

import torch

from models.native_build import NativeUnavailable
from models.scan import PackedLayout, scan_doubling, scan_time_major, use_backend
from models.scan.loop import LoopScan
from models.scan.native import load_native
from models.scan.recurrence import Backend
from models.serving.graphs import capture_cuda
from models.training.allocator import freed_memory_kept
from tests.benchmarks import gpu_scan
from tests.benchmarks.plot import Panel, write_lines
from tests.benchmarks.report import print_table, write_json

FLOOR = "five memory passes"
DOUBLING = "recursive doubling"
WARM_UP_ROUNDS = 2


def cpu_backends() -> dict[str, Backend]:
    """Return the forms that this machine has, compiled anew."""
    found: dict[str, Backend] = {"loop": LoopScan()}
    with tempfile.TemporaryDirectory() as folder:
        started = time.perf_counter()
        try:
            found["native"] = load_native(Path(folder))
        except NativeUnavailable as error:
            print(f"no native form: {error}")
        else:
            print(f"native form compiled in {time.perf_counter() - started:.1f} s")
    return found


def runs(
    backends: dict[str, Backend], batch: int, length: int, channels: int
) -> dict[str, Callable[[], object]]:
    """Return what is to be timed, by its name."""
    generator = torch.Generator().manual_seed(0)
    rows = batch * length
    u, gradient = (
        torch.randn(rows, channels, dtype=torch.complex64, generator=generator) for _ in range(2)
    )
    h0 = torch.randn(batch, channels, dtype=torch.complex64, generator=generator)
    radius, angle = torch.rand(2, channels, generator=generator)
    lam = torch.polar(0.8 + 0.19 * radius, 6.2832 * angle)
    layout = PackedLayout.from_lengths(torch.full((batch,), length))
    real = torch.ones(batch, length, dtype=torch.bool)
    leaves = [x.requires_grad_() for x in (u, lam, h0)]
    target = torch.empty_like(u, requires_grad=False)

    def doubling() -> object:
        h = scan_doubling(u.view(batch, length, channels), lam, real)
        return torch.autograd.grad(h, leaves[:2], gradient.view(h.shape))

    def by(backend: Backend) -> object:
        with use_backend(backend):
            return torch.autograd.grad(scan_time_major(u, lam, h0, layout), leaves, gradient)

    return {
        FLOOR: lambda: target.copy_(u.detach()),
        DOUBLING: doubling,
        **{name: partial(by, backend) for name, backend in backends.items()},
    }


def measure(todo: dict[str, Callable[[], object]], rounds: int) -> dict[str, dict[str, float]]:
    """Time everything in turns: median and best, ms; ratios to the floor and to doubling."""
    times_ms: dict[str, list[float]] = {name: [] for name in todo}
    for _ in range(WARM_UP_ROUNDS + rounds):
        for name, run in todo.items():
            started = time.perf_counter()
            made = run()
            passes = 2.5 if name == FLOOR else 1.0  # a copy is two passes
            times_ms[name].append(1000 * passes * (time.perf_counter() - started))
            del made  # outside of the time
    figures = {}
    for name, values in times_ms.items():
        counted = values[WARM_UP_ROUNDS:]
        figures[name] = {"median_ms": statistics.median(counted), "best_ms": min(counted)}
    for figure in figures.values():
        figure["of_floor"] = figure["median_ms"] / figures[FLOOR]["median_ms"]
        figure["faster_than_doubling"] = figures[DOUBLING]["median_ms"] / figure["median_ms"]
    return figures


def draw_plot(
    path: Path,
    by_length: dict[int, dict[str, dict[str, float]]],
    shape: tuple[int, int],
    threads: int,
) -> None:
    """Draw the time of a row over the length, for so many sequences and channels."""
    batch, channels = shape
    lines = {
        name: [(n, 1000 * by_length[n][name]["median_ms"] / (n * batch)) for n in by_length]
        for name in next(iter(by_length.values()))
    }
    panel = Panel(
        title="us a row, logarithmic", x="rows of a sequence", lines=lines, log_x=True, log_y=True
    )
    title = f"The scan, forwards and backwards, {batch} sequences of {channels} channels"
    write_lines(path, f"{title}, threads: {threads}", [panel])


def on_gpu(device: torch.device, rounds: int, path: Path | None) -> None:
    """Measure the scan on a GPU, print the tables and write the figures."""
    name, figures = torch.cuda.get_device_name(device), {}
    for shape in gpu_scan.SHAPES:
        costs = gpu_scan.measure_scan(device, shape, capture_cuda, rounds)
        print(f"\n{shape}, {name}")
        floor = costs[gpu_scan.FLOOR]
        print_table(
            ("", *(f"{way}, us" for way in floor), *(f"{way}, of floor" for way in floor)),
            [
                (form, *(by[way] for way in floor), *(by[way] / floor[way] for way in floor))
                for form, by in costs.items()
            ],
        )
        figures["x".join(map(str, shape))] = costs
    write_json(path, {"gpu": name, "rounds": rounds, "us": figures})


def main() -> None:
    """Measure, print the tables and write figures and plot where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--batch", type=int, default=128, help="sequences")
    parser.add_argument("--channels", type=int, default=128, help="complex numbers of a row")
    parser.add_argument("--lengths", default="25,50,100,200,400", help="rows of a sequence")
    parser.add_argument("--rounds", type=int, default=11, help="measured rounds")
    parser.add_argument("--threads", type=int, help="of torch; not given: as it chooses")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plot", type=Path, help="where to draw time over length, as SVG")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    if arguments.device != "cpu":
        on_gpu(torch.device(arguments.device), arguments.rounds, arguments.json)
        return
    backends = cpu_backends()
    by_length = {}
    with freed_memory_kept():
        for length in map(int, arguments.lengths.split(",")):
            todo = runs(backends, arguments.batch, length, arguments.channels)
            by_length[length] = figures = measure(todo, arguments.rounds)
            shape = (arguments.batch, length, arguments.channels)
            print(f"\n{shape}, {torch.get_num_threads()} threads")
            print_table(
                ("", "median, ms", "best, ms", "of floor", "times less than doubling"),
                [(name, *figure.values()) for name, figure in figures.items()],
            )
    write_json(
        arguments.json,
        {
            "batch": arguments.batch,
            "channels": arguments.channels,
            "threads": torch.get_num_threads(),
            "rounds": arguments.rounds,
            "by_length": by_length,
        },
    )
    if arguments.plot is not None:
        shape = (arguments.batch, arguments.channels)
        draw_plot(arguments.plot, by_length, shape, torch.get_num_threads())


if __name__ == "__main__":
    main()
