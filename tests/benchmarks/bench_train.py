"""A packed training step against the straightforward form of the same step.

    python -m tests.benchmarks.bench_train [--data FILE.seq.txt.gz] [--steps N] [--threads N]
        [--json FILE]
    python -m tests.benchmarks.bench_train --items N [--sampled S] [--windows W] [--steps N]

The straightforward form does what the published code does: windows padded left, to a power of two
inside the blocks, complex projections of activations cast to complex, the recurrence by recursive
doubling, logits for every position, and torch's cross-entropy over them. Both start from the same
weights and take the same batches, with dropout, gradient clipping and AdamW, in turns within one
process. Loss and gradients are compared without dropout. Where others use the machine too, the
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
from pathlib import Path

import numpy as np
import torch
from torch import Tensor, nn
from torch.nn import functional as F

from models.allocator import freed_memory_kept
from models.config import ModelConfig, TrainingConfig
from models.evaluation import leave_one_out
from models.lru import Block
from models.packing import PAD, Indices, PackedBatch, TrainingWindows
from models.recommender import Recommender
from models.scan import scan_doubling
from models.training import batch_loss, create_optimizer, negative_sampler
from pipeline.settings import TrainerSettings
from pipeline.training.scan_form import fastest_scan
from tests.benchmarks.report import write_json

N_ITEMS = 3416
USERS = 6040
MEDIAN_LENGTH, MEAN_LENGTH = 96, 165.5
SHORTEST, LONGEST = 18, 2277
WARM_UP_STEPS = 2
ZIPF_EXPONENT = 1.2


class PlainBlock(nn.Module):
    """One block on padded batches, with complex parameters."""

    def __init__(self, block: Block, dropout: float) -> None:
        super().__init__()
        lru, feed_forward = block.lru, block.feed_forward
        channels = lru.nu_log.numel()
        self.dropout = dropout
        self.params_log = nn.Parameter(torch.stack((lru.nu_log, lru.theta_log, lru.gamma_log)))
        parts = lru.in_weight.view(channels, 2, -1)
        self.in_weight = nn.Parameter(torch.complex(parts[:, 0], parts[:, 1]))
        self.in_bias = nn.Parameter(torch.view_as_complex(lru.in_bias.view(channels, 2)))
        self.out_weight = nn.Parameter(
            torch.complex(lru.out_weight[:, 0::2], -lru.out_weight[:, 1::2])
        )
        self.out_bias = nn.Parameter(torch.complex(lru.out_bias, torch.zeros_like(lru.out_bias)))
        self.norm_1 = nn.LayerNorm(lru.out_bias.numel())
        self.linear_1 = nn.Linear(*feed_forward.weight_1.shape[::-1])
        self.linear_2 = nn.Linear(*feed_forward.weight_2.shape[::-1])
        self.norm_2 = nn.LayerNorm(lru.out_bias.numel())
        copies = [
            (self.norm_1.weight, lru.norm.weight),
            (self.norm_1.bias, lru.norm.bias),
            (self.linear_1.weight, feed_forward.weight_1),
            (self.linear_1.bias, feed_forward.bias_1),
            (self.linear_2.weight, feed_forward.weight_2),
            (self.linear_2.bias, feed_forward.bias_2),
            (self.norm_2.weight, feed_forward.norm.weight),
            (self.norm_2.bias, feed_forward.norm.bias),
        ]
        for own, source in copies:
            own.copy_(source)

    def forward(self, x: Tensor, real: Tensor) -> Tensor:
        """Map (n, l, d) with mask (n, l)."""
        nu, theta, gamma = torch.exp(self.params_log)
        u = F.linear(x.to(torch.complex64), self.in_weight, self.in_bias) * gamma
        h = scan_doubling(u, torch.exp(torch.complex(-nu, theta)), real)
        y = F.linear(h, self.out_weight, self.out_bias).real
        x = self.norm_1(F.dropout(y, self.dropout, self.training) + x)
        inner = F.dropout(F.gelu(self.linear_1(x)), self.dropout, self.training)
        return self.norm_2(F.dropout(self.linear_2(inner), self.dropout, self.training) + x)

    def gradients(self) -> list[Tensor]:
        """Return gradients in the order and form of a Block's parameters."""
        in_weight, in_bias = self.in_weight.grad, self.in_bias.grad
        out_weight = self.out_weight.grad.conj().resolve_conj()
        return [
            *self.params_log.grad,
            torch.view_as_real(in_weight).transpose(1, 2).flatten(0, 1),
            torch.view_as_real(in_bias).flatten(),
            torch.view_as_real(out_weight).flatten(1),
            self.out_bias.grad.real,
            *(p.grad for p in self.norm_1.parameters()),
            *(p.grad for p in self.linear_1.parameters()),
            *(p.grad for p in self.linear_2.parameters()),
            *(p.grad for p in self.norm_2.parameters()),
        ]


class PlainRecommender(nn.Module):
    """The whole model on padded batches, with the weights of a Recommender."""

    @torch.no_grad()
    def __init__(self, recommender: Recommender) -> None:
        super().__init__()
        self.dropout = recommender.config.dropout
        self.token = nn.Parameter(recommender.item_embedding.clone())
        self.bias = nn.Parameter(recommender.item_bias.clone())
        self.norm = nn.LayerNorm(recommender.config.hidden_size)
        self.norm.load_state_dict(recommender.embedding_norm.state_dict())
        self.blocks = nn.ModuleList(PlainBlock(block, self.dropout) for block in recommender.blocks)

    def loss(self, items: Tensor, labels: Tensor) -> Tensor:
        """Return the mean cross-entropy over the labels that are not pads."""
        x = self.norm(F.dropout(F.embedding(items, self.token), self.dropout, self.training))
        length = items.shape[1]
        missing = (1 << (length - 1).bit_length()) - length
        x, real = F.pad(x, (0, 0, missing, 0)), F.pad(items != PAD, (missing, 0))
        for block in self.blocks:
            x = block(x, real)
        logits = F.linear(x[:, missing:], self.token, self.bias)
        return F.cross_entropy(logits.flatten(0, 1), labels.flatten(), ignore_index=PAD)


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


def padded(windows: TrainingWindows, chosen: Indices, length: int) -> tuple[Tensor, Tensor]:
    """Return the inputs and labels of windows, both (n, length), padded left."""
    items = np.full((chosen.size, length), PAD)
    labels = np.full((chosen.size, length), PAD)
    for row, window in enumerate(chosen):
        start, count = windows.starts[window], windows.counts[window]
        cold = int(windows.cold[window])
        labels[row, length - count :] = windows.events[start : start + count]
        items[row, length - count + cold :] = windows.events[start - 1 + cold : start + count - 1]
    return torch.from_numpy(items), torch.from_numpy(labels)


def take_step(
    model: nn.Module,
    optimizer: torch.optim.Optimizer,
    clip: float,
    loss: Callable[..., Tensor],
    *inputs: object,
) -> tuple[float, float]:
    """Make one whole training step; return its seconds and those its threads computed."""
    started, computed = time.perf_counter(), time.process_time()
    value = loss(*inputs)
    optimizer.zero_grad()
    value.backward()
    nn.utils.clip_grad_norm_(model.parameters(), clip)
    optimizer.step()
    return time.perf_counter() - started, time.process_time() - computed


def disagreement(
    packed: Recommender, plain: PlainRecommender, batch: PackedBatch, *both: Tensor
) -> dict[str, float]:
    """Compare loss and gradients without dropout, relative to the plain form's (largest entry)."""
    packed.eval()
    plain.eval()
    packed_loss, plain_loss = batch_loss(packed, batch), plain.loss(*both)
    packed_loss.backward()
    plain_loss.backward()
    plain_gradients = [
        plain.token.grad,
        plain.bias.grad,
        *(p.grad for p in plain.norm.parameters()),
        *(gradient for block in plain.blocks for gradient in block.gradients()),
    ]
    worst = max(
        float((parameter.grad - gradient).abs().max() / gradient.abs().max())
        for parameter, gradient in zip(packed.parameters(), plain_gradients, strict=True)
    )
    packed.train()
    plain.train()
    return {
        "loss_relative_difference": abs(packed_loss.item() / plain_loss.item() - 1),
        "gradient_relative_difference": worst,
    }


def measure(sequences: list[Indices], steps: int) -> dict[str, object]:
    """Time both forms in turns over the first batches of an epoch."""
    config = ModelConfig(n_items=N_ITEMS, max_length=200)
    training = TrainingConfig()
    windows = TrainingWindows.cut(leave_one_out(sequences).train, config.max_length)
    packed = Recommender(config, torch.Generator().manual_seed(training.seed))
    plain = PlainRecommender(packed)
    order = np.random.default_rng(training.seed).permutation(len(windows))
    packed_optimizer = create_optimizer(packed, training)
    plain_optimizer = torch.optim.AdamW(
        plain.parameters(), training.learning_rate, eps=training.adam_epsilon
    )
    packed_s, plain_s, rows = [], [], []
    for step in range(WARM_UP_STEPS + steps):
        chosen = order[step * training.batch_size :][: training.batch_size]
        batch, both = windows.batch(chosen), padded(windows, chosen, config.max_length)
        if step == 0:
            agreement = disagreement(packed, plain, batch, *both)
        plain_s.append(take_step(plain, plain_optimizer, training.clip_norm, plain.loss, *both))
        packed_s.append(
            take_step(packed, packed_optimizer, training.clip_norm, batch_loss, packed, batch)
        )
        rows.append(batch.items.size)
    (plain_ms, plain_cpu_ms), (packed_ms, packed_cpu_ms) = (
        [1000 * statistics.median(times[WARM_UP_STEPS:]) for times in zip(*steps_s, strict=True)]
        for steps_s in (plain_s, packed_s)
    )
    return {
        "plain_ms": plain_ms,
        "packed_ms": packed_ms,
        "ratio": plain_ms / packed_ms,
        "plain_cpu_ms": plain_cpu_ms,
        "packed_cpu_ms": packed_cpu_ms,
        "cpu_ratio": plain_cpu_ms / packed_cpu_ms,
        "packed_rows": statistics.mean(rows),
        "padded_rows": training.batch_size * config.max_length,
        **agreement,
        "steps": steps,
        "threads": torch.get_num_threads(),
    }


def measure_sampled(items: int, sampled: int, window_count: int, steps: int) -> dict[str, object]:
    """Time a step with the full loss and one against a sample, in turns after one of each."""
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

    def sampled_loss() -> Tensor:
        return batch_loss(recommender, batch, sampler.draw(generator))

    def full_loss() -> Tensor:
        return batch_loss(recommender, batch)

    seconds: dict[str, list[float]] = {"full_ms": [], "sampled_ms": []}
    for _ in range(1 + steps):
        for name, loss in (("full_ms", full_loss), ("sampled_ms", sampled_loss)):
            wall_s, _cpu_s = take_step(recommender, optimizer, training.clip_norm, loss)
            seconds[name].append(wall_s)
    medians = {name: 1000 * statistics.median(times[1:]) for name, times in seconds.items()}
    return {
        **medians,
        "ratio": medians["full_ms"] / medians["sampled_ms"],
        "items": items,
        "sampled": sampled,
        "rows": batch.items.size,
        "steps": steps,
        "threads": torch.get_num_threads(),
    }


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
    for name, figure in figures.items():
        print(f"{name:30} {figure:.4g}" if isinstance(figure, float) else f"{name:30} {figure}")
    write_json(arguments.json, figures)


if __name__ == "__main__":
    main()
