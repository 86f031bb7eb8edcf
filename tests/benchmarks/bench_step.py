"""One step an event against one scan of everything, and what a step costs.

    python -m tests.benchmarks.bench_step [--items N] [--rounds N] [--threads N] [--form auto|torch]
        [--json FILE]

Agreement: users take 1,000 random items one by one, and once more all at once; the states after
every 100 of them and the top-10 after each are compared. Top-10s are equal up to ties if, by the
scan's scores, the step's items are as good as the scan's within 1e-5.

Cost: micro-batches of several sizes, then the first event of a user beside the one after 100,000,
and top-10 with 50 exclusions beside the step; all in turns, medians over the rounds. Weights are
ten times the initial ones, so that scores spread as those of a trained model.
"""

import argparse
import json
import os
import platform
import statistics
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.config import ModelConfig
from models.recommender import Recommender
from models.serving import ServingModel
from models.serving_native import NativeServing, load_native_serving

STEPS = 1000
SCAN_EVERY = 100
USERS = 8
BATCH_SIZES = (1, 8, 256, 1000)
OLD_AGE = 100_000
TIE = 1e-5
WARM_UP_ROUNDS = 4
WARM_UP_CALLS = 3


@torch.no_grad()
def create_model(n_items: int, native: NativeServing | None) -> ServingModel:
    """Make a model of the published size with spread-out scores."""
    recommender = Recommender(ModelConfig(n_items=n_items), torch.Generator().manual_seed(0)).eval()
    for name, parameter in recommender.named_parameters():
        if "norm" not in name and not name.endswith("_log"):
            parameter.mul_(10)
    return ServingModel(recommender, native=native)


def agreement(model: ServingModel) -> dict[str, object]:
    """Compare STEPS single steps of USERS users with one scan."""
    items = torch.randint(1, model.config.n_items + 1, (USERS, STEPS))
    one_each = torch.ones(USERS, dtype=torch.int64)
    state = model.init_state(USERS)
    worst_state, outputs = 0.0, []
    for now in range(1, STEPS + 1):
        state, output = model.advance(state, items[:, now - 1], one_each)
        outputs.append(output)
        if now % SCAN_EVERY == 0:
            scanned, _ = model.advance(
                model.init_state(USERS), items[:, :now].flatten(), now * one_each
            )
            worst_state = max(worst_state, float((state - scanned).abs().max()))
    stepped = torch.stack(outputs, 1).flatten(0, 1)
    _, scanned_outputs = model.advance(model.init_state(USERS), items.flatten(), one_each * STEPS)
    best, scanned_items = model.top_k(scanned_outputs, 10)
    _, stepped_items = model.top_k(stepped, 10)
    as_scanned = model.scores(scanned_outputs).gather(1, stepped_items)
    return {
        "steps": STEPS,
        "largest_state_difference": worst_state,
        "largest_output_difference": float((stepped - scanned_outputs).abs().max()),
        "largest_output": float(stepped.abs().max()),
        "top10_same_items": float((scanned_items == stepped_items).all(1).float().mean()),
        "top10_equal_up_to_ties": bool(((best - as_scanned).abs() <= TIE).all()),
    }


def costs(model: ServingModel, rounds: int) -> dict[str, object]:
    """Time every case once a round."""
    n_items = model.config.n_items

    def draw(*shape: int) -> Tensor:
        return torch.randint(1, n_items + 1, shape)

    old, _ = model.advance(model.init_state(1), draw(OLD_AGE), torch.tensor([OLD_AGE]))
    cases: dict[str, Callable[[], object]] = {}

    def add_step(name: str, state: Tensor) -> None:
        items, lengths = draw(len(state)), torch.ones(len(state), dtype=torch.int64)
        cases[name] = lambda: model.advance(state, items, lengths)

    for size in BATCH_SIZES:
        state, _ = model.advance(model.init_state(size), draw(20 * size), torch.full((size,), 20))
        add_step(f"step_us_per_event_b{size}", state)
    for size in (1, 256):
        add_step(f"first_event_us_b{size}", model.init_state(size))
        add_step(f"event_{OLD_AGE}_us_b{size}", old.expand(size, -1, -1).contiguous())
    outputs, excluded = torch.randn(256, model.config.hidden_size), draw(256, 50)
    cases["top10_us_per_user_b256"] = lambda: model.top_k(outputs, 10, excluded)

    times: dict[str, list[float]] = {name: [] for name in cases}
    for number in range(WARM_UP_ROUNDS + rounds):
        # What ran before has emptied the caches, so each case runs warm and in both orders.
        for name, case in (reversed if number % 2 else iter)(cases.items()):
            for _ in range(WARM_UP_CALLS):
                case()
            started = time.perf_counter()
            case()
            times[name].append(time.perf_counter() - started)
    figures: dict[str, object] = {}
    for name, seconds in times.items():
        users = int(name.rpartition("_b")[2]) if "_per_" in name else 1
        figures[name] = 1e6 * statistics.median(seconds[WARM_UP_ROUNDS:]) / users
    for size in (1, 256):
        figures[f"event_{OLD_AGE}_over_first_b{size}"] = (
            figures[f"event_{OLD_AGE}_us_b{size}"] / figures[f"first_event_us_b{size}"]
        )
    return figures


def main() -> None:
    """Measure, print the figures and write them where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=3700, help="items of the catalogue")
    parser.add_argument("--rounds", type=int, default=200, help="measured rounds over all cases")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--form", choices=("auto", "torch"), default="auto", help="as worker.form")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    native = None
    if arguments.form == "auto":
        with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as folder:
            native = load_native_serving(Path(folder))
    model = create_model(arguments.items, native)
    figures = {
        **agreement(model),
        **costs(model, arguments.rounds),
        "form": "torch" if native is None else "native",
        "items": arguments.items,
        "rounds": arguments.rounds,
        "threads": torch.get_num_threads(),
        "cores": os.cpu_count(),
        "machine": platform.processor() or platform.machine(),
        "python": platform.python_version(),
        "torch": torch.__version__,
    }
    for name, figure in figures.items():
        print(f"{name:30} {figure:.4g}" if isinstance(figure, float) else f"{name:30} {figure}")
    if arguments.json:
        arguments.json.write_text(json.dumps(figures, indent=1))


if __name__ == "__main__":
    main()
