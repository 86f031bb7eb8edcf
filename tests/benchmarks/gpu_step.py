"""The step as a GPU makes it, where the states lie: by a graph, by launches, beside its bytes.

And the lists after it, beside the product of matrices that they cannot do without.
"""

import statistics
import time
from collections.abc import Callable

import torch

from models.recommender import Recommender
from models.serving.graphs import Capture, StepGraphs
from models.serving.model import ServingModel
from models.serving.top_k import BLOCK_ITEMS, top_k
from models.transfers import to_device
from tests.benchmarks.gpu_copy import CALLS, finish, large_copy

USERS = (1, 8, 256, 4096)
SLOTS = 20_000
GRAPH, LAUNCHES, FLOOR = "by a graph", "by launches", "byte floor"
K = 10
RANKED, LISTS, PLAIN, PRODUCT = "step and lists", "lists", "lists by every float", "product alone"
WARM_UP_ROUNDS = 3


def measure_steps(
    recommender: Recommender, device: torch.device, capture: Capture, rounds: int
) -> dict[int, dict[str, float]]:
    """Return microseconds of a micro-batch in which each user has one event, by users and way.

    From indices on the CPU to states in their places; nothing is ranked. Without a graph where
    none can be captured. The floor is the bytes of a step (states read and written, embeddings
    read, outputs written, the weights of the blocks once) at the speed at which memory is copied.
    """
    model, graphs = ServingModel(recommender, device), StepGraphs(capture)
    states = model.init_state(SLOTS + 1)
    copy, copied_bytes = large_copy(device, states.nbytes)
    copied_us = _median_us(lambda: [copy() for _ in range(CALLS)], device, rounds)
    bytes_per_us = CALLS * copied_bytes / copied_us
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


def measure_lists(
    recommender: Recommender, device: torch.device, capture: Capture, rounds: int
) -> dict[int, dict[str, float]]:
    """Return microseconds of the `K` best items of a micro-batch, by users and way.

    With the step before them and alone, by the form that serves such a catalogue there; by every
    score in float32; and of the product of matrices alone, in the form's own numbers, its results
    written once, a block of items at a time.
    """
    model, graphs = ServingModel(recommender, device), StepGraphs(capture)
    states = model.init_state(SLOTS + 1)
    weight, bias = model._weights(), model._bias
    table = weight if model._rounded is None else model._rounded.rounded
    costs = {}
    for users in USERS:
        slots, items = torch.arange(users), torch.randint(1, recommender.config.n_items, (users,))
        outputs = model.advance(model.init_state(users), items, torch.ones_like(items))[1]
        left = torch.randn(users, table.shape[1], device=device).to(table.dtype)

        def ranked(slots: torch.Tensor = slots, items: torch.Tensor = items) -> object:
            moved = graphs.step(model, states, slots, items)
            if moved is None:
                index = to_device(slots, device)
                states[index], moved = model.advance(states[index], items, torch.ones_like(items))
            return model.top_k(moved, K)

        def product(left: torch.Tensor = left) -> None:
            for first in range(0, len(table), BLOCK_ITEMS):
                torch.mm(left, table[first : first + BLOCK_ITEMS].t())

        ways = {
            RANKED: ranked,
            LISTS: lambda outputs=outputs: model.top_k(outputs, K),
            PLAIN: lambda outputs=outputs: top_k(outputs, weight, bias, K, None, None),
            PRODUCT: product,
        }
        costs[users] = {way: _median_us(work, device, rounds) for way, work in ways.items()}
    return costs


def _median_us(work: Callable[[], object], device: torch.device, rounds: int) -> float:
    spans = []
    for _ in range(WARM_UP_ROUNDS + rounds):
        finish(device)
        begun = time.perf_counter()
        work()
        finish(device)
        spans.append(1e6 * (time.perf_counter() - begun))
    return statistics.median(spans[WARM_UP_ROUNDS:])
