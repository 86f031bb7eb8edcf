"""The step as a GPU makes it, where the states lie: by a graph, by launches, beside its bytes."""

import statistics
import time
from collections.abc import Callable

import torch

from models.recommender import Recommender
from models.serving import ServingModel
from models.serving_graphs import Capture, StepGraphs
from models.transfers import to_device

USERS = (1, 8, 256, 4096)
SLOTS = 20_000
GRAPH, LAUNCHES, FLOOR = "by a graph", "by launches", "byte floor"
WARM_UP_ROUNDS = 3


def measure_steps(
    recommender: Recommender, device: torch.device, capture: Capture, rounds: int
) -> dict[int, dict[str, float]]:
    """Return microseconds of a micro-batch in which each user has one event, by users and way.

    From indices on the CPU to states in their places; nothing is ranked. Without a graph where
    none can be captured. The floor is the bytes of a step (states read and written, embeddings
    read, outputs written, the weights of the blocks once) at the speed of a copy of all states.
    """
    model, graphs = ServingModel(recommender, device), StepGraphs(capture)
    states = model.init_state(SLOTS + 1)
    target = torch.empty_like(states)
    copied_us = _median_us(lambda: target.copy_(states), device, rounds)
    bytes_per_us = 2 * states.nbytes / copied_us
    weights = sum(weight.nbytes for block in recommender.blocks for weight in block.parameters())
    width_bytes = 4 * recommender.config.hidden_size
    costs = {}
    for users in USERS:
        slots = torch.randperm(SLOTS)[:users]
        items = torch.randint(1, recommender.config.n_items + 1, (users,))
        ones = torch.ones_like(items)

        def by_graph(slots: torch.Tensor = slots, items: torch.Tensor = items) -> object:
            return graphs.step(model, states, slots, items)

        def by_launches(
            slots: torch.Tensor = slots, items: torch.Tensor = items, ones: torch.Tensor = ones
        ) -> object:
            index = to_device(slots, device)
            states[index], outputs = model.advance(states[index], items, ones)
            return outputs

        by_graph()  # captured, checked and, where it is no good, given up
        ways = {LAUNCHES: by_launches}
        if by_graph() is not None:
            ways = {GRAPH: by_graph, **ways}
        moved = users * (2 * states[0].nbytes + 2 * width_bytes) + weights
        costs[users] = {
            **{way: _median_us(step, device, rounds) for way, step in ways.items()},
            FLOOR: moved / bytes_per_us,
        }
    return costs


def _median_us(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    spans = []
    for _ in range(WARM_UP_ROUNDS + rounds):
        _finish(device)
        begun = time.perf_counter()
        work()
        _finish(device)
        spans.append(1e6 * (time.perf_counter() - begun))
    return statistics.median(spans[WARM_UP_ROUNDS:])


def _finish(device: torch.device) -> None:
    if device.type == "cuda":
        torch.cuda.synchronize(device)
