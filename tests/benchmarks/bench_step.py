"""One step an event against one scan of everything, against others' ways, and at any age.

    python -m tests.benchmarks.bench_step [--items N] [--rounds N] [--threads N] [--form auto|torch]
        [--json FILE] [--plot FILE.svg]
    python -m tests.benchmarks.bench_step --device cuda [--items N] [--rounds N] [--json FILE]

The second form measures a GPU alone, the step and the lists, see `tests.benchmarks.gpu_step`; the
rest is about the first.

Agreement: users take 1,000 random items one by one, and once more all at once; the states after
every 100 of them and the top-10 after each are compared. Top-10s are equal up to ties if, by the
scan's scores, the step's items are as good as the scan's within 1e-5.

Ways: what a user's next event costs by a step from the state, and by encoding the user's last 200
items anew, as is done where no state is kept: by this model in the same form as the step, by the
published form of it (`tests.benchmarks.forms`), and by a SASRec of the same width
(`tests.benchmarks.sasrec`), whose last block computes the last position only. None of it ranks.

Age: a user's first event, the 1,000th and the 1,000,000th. Those before were stepped over. The
ratio of a round is that of two steps right after one another; its quartiles tell the noise.

Then a large batch, and top-10 with 50 exclusions. All in turns, in both orders, medians over the
rounds; where a round takes long, in fewer of them. Weights are ten times the initial ones, so that
scores spread as those of a trained model.
"""

import argparse
import statistics
import tempfile
from collections.abc import Callable
from pathlib import Path
from typing import Any

import torch
from torch import Tensor

from models.config import ModelConfig
from models.recommender import Recommender
from models.serving.graphs import capture_cuda
from models.serving.model import ServingModel
from models.serving.native import load_native_serving
from models.training.allocator import freed_memory_kept
from tests.benchmarks.forms import PublishedRecommender
from tests.benchmarks.gpu_step import (
    FLOOR,
    GRAPH,
    LAUNCHES,
    LISTS,
    PLAIN,
    PRODUCT,
    RANKED,
    measure_lists,
    measure_steps,
)
from tests.benchmarks.plot import Panel, write_lines
from tests.benchmarks.report import machine, print_table, write_json
from tests.benchmarks.sasrec import Sasrec
from tests.benchmarks.turns import in_turns

STEPS = 1000
SCAN_EVERY = 100
USERS = 8
BATCH_SIZES = (1, 8, 256)
LARGE_BATCH = 1000
WINDOW = 200
AGES = (1, 1000, 1_000_000)
STRETCH = 1000
"""Events of a call on the way to an age; in C++ they are the same steps, to the bit."""
TIE = 1e-5
SAME = 1e-3
"""Outputs of the forms of one model, of about 3 in size."""
AT_ONCE = 32
"""Windows of a call that encodes: with more, a SASRec's activations leave the cache."""
STEP = "step"


@torch.no_grad()
def create_recommender(n_items: int) -> Recommender:
    """Make a model of the published size with spread-out scores."""
    config = ModelConfig(n_items=n_items, max_length=WINDOW)
    recommender = Recommender(config, torch.Generator().manual_seed(0)).eval()
    for name, parameter in recommender.named_parameters():
        if "norm" not in name and not name.endswith("_log"):
            parameter.mul_(10)
    return recommender


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


def draw(model: ServingModel, *shape: int) -> Tensor:
    """Return random items."""
    return torch.randint(1, model.config.n_items + 1, shape)


def step_of(model: ServingModel, state: Tensor) -> Callable[[], object]:
    """Return a step of all users of a state."""
    items, lengths = draw(model, len(state)), torch.ones(len(state), dtype=torch.int64)
    return lambda: model.advance(state, items, lengths)


def by_way(
    model: ServingModel, published: PublishedRecommender, sasrec: Sasrec, users: int, rounds: int
) -> dict[str, float]:
    """Return the microseconds of an event by every way, for so many users at a time."""
    windows = draw(model, users, WINDOW).split(AT_ONCE)

    def anew(window: Tensor) -> tuple[Tensor, Tensor]:
        users = len(window)
        return model.advance(
            model.init_state(users), window.flatten(), torch.full((users,), WINDOW)
        )

    states, outputs = zip(*map(anew, windows), strict=True)
    last = torch.cat(outputs)[WINDOW - 1 :: WINDOW]
    difference = float((last - torch.cat([published(w)[:, -1] for w in windows])).abs().max())
    assert difference < SAME, f"the published form's outputs differ by {difference}"
    cases: dict[str, Callable[[], object]] = {
        STEP: step_of(model, torch.cat(states)),
        f"SASRec, last {WINDOW}": lambda: [sasrec.encode(window) for window in windows],
        f"LRURec, last {WINDOW}": lambda: [anew(window) for window in windows],
        f"published form, last {WINDOW}": lambda: [published(w)[:, -1] for w in windows],
    }
    spans = in_turns(cases, rounds)
    return {name: statistics.median(values) / users for name, values in spans.items()}


def by_age(model: ServingModel, rounds: int) -> list[dict[str, float]]:
    """Time the step of users of several ages, one and many of them at a time."""
    state, events, states = model.init_state(1), 0, {}
    for age in AGES:
        while events < age - 1:
            count = min(STRETCH, age - 1 - events)
            state, _ = model.advance(state, draw(model, count), torch.tensor([count]))
            events += count
        states[age] = state
    rows = []
    for users in (BATCH_SIZES[0], BATCH_SIZES[-1]):
        spans = in_turns(
            {
                str(age): step_of(model, state.expand(users, -1, -1).contiguous())
                for age, state in states.items()
            },
            rounds,
        )
        for age, values in zip(AGES, spans.values(), strict=True):
            ratios = [now / first for now, first in zip(values, spans[str(AGES[0])], strict=True)]
            quarter, ratio, three_quarters = (
                statistics.quantiles(ratios, n=4) if age > 1 else (1.0, 1.0, 1.0)
            )
            rows.append(
                {
                    "users": users,
                    "event": age,
                    "us_an_event": statistics.median(values) / users,
                    "of_first": ratio,
                    "of_first_quartiles": (quarter, three_quarters),
                }
            )
    return rows


def besides(model: ServingModel, rounds: int) -> dict[str, float]:
    """Return microseconds of an event in a large batch, and of a user's list."""
    users = BATCH_SIZES[-1]
    outputs, excluded = torch.randn(users, model.config.hidden_size), draw(model, users, 50)
    nothing, lengths = model.init_state(LARGE_BATCH), torch.full((LARGE_BATCH,), 20)
    state, _ = model.advance(nothing, draw(model, 20 * LARGE_BATCH), lengths)
    step, lists = in_turns(
        {STEP: step_of(model, state), "lists": lambda: model.top_k(outputs, 10, excluded)}, rounds
    ).values()
    return {
        f"step_us_an_event_b{LARGE_BATCH}": statistics.median(step) / LARGE_BATCH,
        f"top10_us_a_user_b{users}": statistics.median(lists) / users,
    }


def draw_plot(path: Path, ways: dict[int, dict[str, float]], ages: list[Any], threads: int) -> None:
    """Draw what the ways cost over the users, and the step over its age."""
    panels = [
        Panel(
            title="us an event, by the users of a batch; logarithmic",
            x="users of a batch",
            lines={
                name: [(users, costs[name]) for users, costs in ways.items()]
                for name in next(iter(ways.values()))
            },
            log_x=True,
            log_y=True,
        ),
        Panel(
            title="us an event, by the events of the user so far; logarithmic",
            x="which event of a user it is",
            lines={
                f"step, batch of {users}": [
                    (row["event"], row["us_an_event"]) for row in ages if row["users"] == users
                ]
                for users in sorted({row["users"] for row in ages})
            },
            log_x=True,
            log_y=True,
            height=120,
        ),
    ]
    write_lines(path, f"What one more event of a user costs, threads: {threads}", panels)


def on_gpu(device: torch.device, n_items: int, rounds: int, path: Path | None) -> None:
    """Measure step and lists on a GPU, print the tables and write the figures; microseconds."""
    name = torch.cuda.get_device_name(device)
    print(f"{machine()}\n{name}, {n_items} items\n")
    recommender = create_recommender(n_items)
    lists = measure_lists(recommender, device, capture_cuda, rounds)
    columns = (RANKED, LISTS, PLAIN, PRODUCT)
    print_table(
        ("users, us a batch", *columns, "lists of the product"),
        [
            (f"{users}", *(by[way] for way in columns), by[LISTS] / by[PRODUCT])
            for users, by in lists.items()
        ],
    )
    costs = measure_steps(recommender, device, capture_cuda, rounds)
    print()
    print_table(
        ("users, us a batch", GRAPH, LAUNCHES, FLOOR, "of floor"),
        [
            (
                f"{users}",
                by.get(GRAPH, "none"),
                by[LAUNCHES],
                by[FLOOR],
                by.get(GRAPH, by[LAUNCHES]) / by[FLOOR],
            )
            for users, by in costs.items()
        ],
    )
    figures = {"us_a_batch": costs, "lists_us_a_batch": lists}
    write_json(path, {"gpu": name, "items": n_items, "rounds": rounds, **figures})


@torch.inference_mode()
def main() -> None:
    """Measure, print the tables and write figures and plot where asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--items", type=int, default=3700, help="items of the catalogue")
    parser.add_argument("--rounds", type=int, default=200, help="measured rounds at most")
    parser.add_argument("--threads", type=int, default=1, help="threads of torch")
    parser.add_argument("--form", choices=("auto", "torch"), default="auto", help="as worker.form")
    parser.add_argument("--device", default="cpu", help="cpu, cuda or cuda:N")
    parser.add_argument("--json", type=Path, help="where to write the figures")
    parser.add_argument("--plot", type=Path, help="where to draw them, as SVG")
    arguments = parser.parse_args()
    torch.set_num_threads(arguments.threads)
    torch.manual_seed(0)
    if arguments.device != "cpu":
        on_gpu(torch.device(arguments.device), arguments.items, arguments.rounds, arguments.json)
        return
    native = None
    if arguments.form == "auto":
        with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as folder:
            native = load_native_serving(Path(folder))
    recommender = create_recommender(arguments.items)
    model = ServingModel(recommender, native=native)
    config = recommender.config
    published = PublishedRecommender(recommender).eval()
    generator = torch.Generator().manual_seed(0)
    sasrec = Sasrec(arguments.items, config.hidden_size, WINDOW, config.n_blocks, 0.2, generator)
    sasrec.eval()
    form = "torch" if native is None else "native"
    print(f"{machine()}\n{arguments.threads} thread(s), {arguments.items} items, form: {form}\n")

    agreed = agreement(model)
    print_table(("steps beside a scan", ""), list(agreed.items()))
    with freed_memory_kept():
        ways = {
            users: by_way(model, published, sasrec, users, arguments.rounds)
            for users in BATCH_SIZES
        }
        costs = ways[BATCH_SIZES[-1]]
        print()
        print_table(
            ("us an event", *(f"B = {users}" for users in ways), "of the step"),
            [
                (name, *(by[name] for by in ways.values()), costs[name] / costs[STEP])
                for name in costs
            ],
        )
        ages = by_age(model, arguments.rounds)
        print()
        print_table(
            ("users", "event", "us an event", "of the first", "quartiles"),
            [
                (
                    f"{row['users']}",
                    row["event"],
                    row["us_an_event"],
                    row["of_first"],
                    "{:.2f} to {:.2f}".format(*row["of_first_quartiles"]),
                )
                for row in ages
            ],
        )
        others = besides(model, arguments.rounds)
        print()
        print_table(("besides", "us"), list(others.items()))
    write_json(
        arguments.json,
        {
            **agreed,
            "us_an_event": ways,
            "by_age": ages,
            **others,
            "form": form,
            "items": arguments.items,
            "rounds": arguments.rounds,
            "threads": torch.get_num_threads(),
        },
    )
    if arguments.plot is not None:
        draw_plot(arguments.plot, ways, ages, torch.get_num_threads())


if __name__ == "__main__":
    main()
