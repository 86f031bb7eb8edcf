"""A packed training step against the published form of the same step, and against a SASRec's.

    python -m tests.benchmarks.bench_train [--data FILE.seq.txt.gz] [--steps N] [--threads N]
        [--json FILE] [--plot FILE.svg]
    python -m tests.benchmarks.bench_train --items N [--sampled S] [--windows W] [--steps N]

The published form (`tests.benchmarks.forms`) starts from the same weights; loss and gradients are
compared without dropout. The SASRec (`tests.benchmarks.sasrec`) has the same width and number of
blocks, and computes logits of labelled positions only. All take the same batches, with dropout,
gradient clipping and AdamW, in turns within one process. Where others use the machine too, the
ratio of the times that the threads computed (`cpu_ratio`) is the steadier one; set
OMP_WAIT_POLICY=PASSIVE for it.

The shape is that of MovieLens-1M: 3,416 items, 128 windows of at most 200 items a step. Without a
file, lengths are drawn from a log-normal with MovieLens-1M's median and mean (96 and 165.5), cut to
its extremes (18 and 2,277), and items uniformly.

With --items it compares the full loss with the sampled one instead, on a catalogue of N items and
batches of W windows of 50 items, drawn from a Zipf law; steps in turns, dense AdamW included.
"""

import argparse
import gzip
import logging
import math
import statistics
import time
from collections.abc import Callable
from functools import partial
from pathlib import Path
from typing import Any

import numpy as np
import torch
from torch import Tensor, nn

from models.config import ModelConfig, TrainingConfig
from models.evaluation import leave_one_out
from models.packing import PAD, Indices, PackedBatch, TrainingWindows
from models.recommender import Recommender
from models.training.allocator import freed_memory_kept
from models.training.step import batch_loss, create_optimizer, negative_sampler
from pipeline.settings import TrainerSettings
from pipeline.training.scan_form import fastest_scan
from tests.benchmarks.forms import PublishedRecommender, padded
from tests.benchmarks.plot import write_bars
from tests.benchmarks.report import print_table, write_json
from tests.benchmarks.sasrec import Sasrec

N_ITEMS = 3416
USERS = 6040
MEDIAN_LENGTH, MEAN_LENGTH = 96, 165.5
SHORTEST, LONGEST = 18, 2277
WARM_UP_STEPS = 2
ZIPF_EXPONENT = 1.2
PACKED, PUBLISHED, SASREC = "packed", "published form", "SASRec"


def random_sequences(seed: int) -> list[Indices]:
    """Draw users as the module's docstring says."""
    generator = np.random.default_rng(seed)
    sigma = math.sqrt(2 * math.log(MEAN_LENGTH / MEDIAN_LENGTH))
    lengths = generator.lognormal(math.log(MEDIAN_LENGTH), sigma, USERS).clip(SHORTEST, LONGEST)
    return [generator.integers(1, N_ITEMS + 1, length) for length in lengths.astype(int)]


def read_sequences(path: Path) -> list[Indices]:
    """Read users from a file of lines `user item item ...`, oldest first, items from 1."""
    with gzip.open(path, "rt") as lines:
        return [np.array(line.split()[1:], dtype=np.int64) for line in lines]


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float,
    loss: Callable[[], Tensor],
) -> tuple[float, float]:
    """Make one whole training step; return its seconds and those its threads computed."""
    started, computed = time.perf_counter(), time.process_time()
    value = loss()
    optimizer.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return time.perf_counter() - started, time.process_time() - computed


def disagreement(
    packed: Recommender, published: PublishedRecommender, batch: PackedBatch, *both: Tensor
) -> dict[str, float]:
    """Compare loss and gradients without dropout, relative to the published form's (largest)."""
    packed.eval()
    published.eval()
    packed_loss, published_loss = batch_loss(packed, batch), published.loss(*both)
    packed_loss.backward()
    published_loss.backward()
    worst = max(
        float((parameter.grad.cpu() - gradient).abs().max() / gradient.abs().max())
        for parameter, gradient in zip(packed.parameters(), published.gradients(), strict=True)
    )
    packed.train()
    published.train()
    return {
        "loss_relative_difference": abs(packed_loss.item() / published_loss.item() - 1),
        "gradient_relative_difference": worst,
    }


def measure(sequences: list[Indices], steps: int) -> dict[str, Any]:
    """Time all forms in turns over the first batches of an epoch."""
    config = ModelConfig(n_items=N_ITEMS, max_length=200)
    training = TrainingConfig()
    windows = TrainingWindows.cut(leave_one_out(sequences).train, config.max_length)
    generator = torch.Generator().manual_seed(training.seed)
    packed = Recommender(config, generator)
    published = PublishedRecommender(packed)
    sasrec = Sasrec(
        N_ITEMS, config.hidden_size, config.max_length, config.n_blocks, config.dropout, generator
    )
    steppers = {PACKED: (packed, create_optimizer(packed, training))} | {
        name: (
            model,
            torch.optim.AdamW(
                model.parameters(), training.learning_rate, eps=training.adam_epsilon
            ),
        )
        for name, model in ((PUBLISHED, published), (SASREC, sasrec))
    }
    order = np.random.default_rng(training.seed).permutation(len(windows))
    times_s: dict[str, list[tuple[float, float]]] = {name: [] for name in steppers}
    rows = []
    for step in range(WARM_UP_STEPS + steps):
        chosen = order[step * training.batch_size :][: training.batch_size]
        batch = windows.batch(chosen)
        before, behind = (
            padded(windows, chosen, config.max_length, before=before) for before in (True, False)
        )
        losses: dict[str, Callable[[], Tensor]] = {
            PACKED: partial(batch_loss, packed, batch),
            PUBLISHED: partial(published.loss, *before),
            SASREC: partial(sasrec.loss, *behind, PAD),
        }
        if step == 0:
            agreement = disagreement(packed, published, batch, *before)
        for name, (model, optimizer) in steppers.items():
            times_s[name].append(take_step(model, optimizer, training.clip_norm, losses[name]))
        rows.append(batch.items.size)
    return {
        "forms": medians(times_s),
        "packed_rows": statistics.mean(rows),
        "padded_rows": training.batch_size * config.max_length,
        **agreement,
    }


def medians(times_s: dict[str, list[tuple[float, float]]]) -> dict[str, dict[str, float]]:
    """Return wall and CPU time of a step by form, and how many times the first one's they are."""
    forms = {}
    for name, spans in times_s.items():
        wall_ms, cpu_ms = (
            1000 * statistics.median(column) for column in zip(*spans[WARM_UP_STEPS:], strict=True)
        )
        forms[name] = {"ms": wall_ms, "cpu_ms": cpu_ms}
    first = next(iter(forms.values()))
    return {
        name: form
        | {"ratio": form["ms"] / first["ms"], "cpu_ratio": form["cpu_ms"] / first["cpu_ms"]}
        for name, form in forms.items()
    }


def measure_sampled(items: int, sampled: int, window_count: int, steps: int) -> dict[str, Any]:
    """Time a step against a sample and one with the full loss, in turns."""
    config = ModelConfig(n_items=items)
    training = TrainingConfig(sampled_negatives=sampled)
    generator = np.random.default_rng(training.seed)
    histories = generator.zipf(ZIPF_EXPONENT, (window_count, config.max_length)) % items + 1
    windows = TrainingWindows.cut(list(histories), config.max_length)
    sampler = negative_sampler(config, training, windows)
    assert sampler is not None, f"--sampled must be below --items, got {sampled} of {items}"
    batch = windows.batch(np.arange(len(windows)))
    recommender = Recommender(config, torch.Generator().manual_seed(training.seed))
    optimizer = create_optimizer(recommender, training)
    losses: dict[str, Callable[[], Tensor]] = {
        "sampled loss": lambda: batch_loss(recommender, batch, sampler.draw(generator)),
        "full loss": lambda: batch_loss(recommender, batch),
    }
    times_s: dict[str, list[tuple[float, float]]] = {name: [] for name in losses}
    for _ in range(WARM_UP_STEPS + steps):
        for name, loss in losses.items():
            times_s[name].append(take_step(recommender, optimizer, training.clip_norm, loss))
    return {
        "forms": medians(times_s),
        "items": items,
        "sampled": sampled,
        "rows": batch.items.size,
    }


def draw_plot(path: Path, forms: dict[str, dict[str, float]], figures: dict[str, Any]) -> None:
    """Draw the time of every form."""
    catalogue = f"{figures['items']:,} items" if "items" in figures else "128 windows of up to 200"
    write_bars(
        path,
        f"A training step, {catalogue}, threads: {figures['threads']}",
        "ms",
        {
            name: (form["ms"], f"{form['ratio']:.1f} times as long" if form["ratio"] != 1 else "")
            for name, form in forms.items()
        },
    )


def main() -> None:
    """Measure, print the figures and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--data", type=Path, help="sequences, user then items: .seq.txt.gz")
    parser.add_argument("--items", type=int, help="compare the losses on so many items instead")
    parser.add_argument("--sampled", type=int, default=8192, help="drawn items, with --items")
    parser.add_argument("--windows", type=int, default=128, help="windows of a step, with --items")
    parser.add_argument("--steps", type=int, default=11, help="measured steps of each form")
    parser.add_argument("--threads", type=int, help="of torch; not given: as it chooses")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plot", type=Path, help="where to draw the times, as SVG")
    arguments = parser.parse_args()
    if arguments.threads is not None:
        torch.set_num_threads(arguments.threads)
    logging.basicConfig(level=logging.INFO, format="%(message)s")
    with freed_memory_kept(), fastest_scan(TrainerSettings(device="cpu")):
        if arguments.items:
            figures = measure_sampled(
                arguments.items, arguments.sampled, arguments.windows, arguments.steps
            )
        else:
            read = arguments.data is not None
            sequences = read_sequences(arguments.data) if read else random_sequences(seed=0)
            figures = measure(sequences, arguments.steps)
    figures |= {"steps": arguments.steps, "threads": torch.get_num_threads()}
    forms = figures.pop("forms")
    print_table(
        ("", "ms", "ratio", "CPU ms", "CPU ratio"),
        [
            (name, form["ms"], form["ratio"], form["cpu_ms"], form["cpu_ratio"])
            for name, form in forms.items()
        ],
    )
    print()
    print_table(("besides", ""), list(figures.items()))
    write_json(arguments.json, {"forms": forms, **figures})
    if arguments.plot is not None:
        draw_plot(arguments.plot, forms, figures)


if __name__ == "__main__":
    main()
