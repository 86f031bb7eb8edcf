"""Cases timed in turns, so that a busy machine is busy for all of them."""

import time
from collections.abc import Callable

WARM_UP_ROUNDS, MIN_ROUNDS, MOST_S = 2, 5, 25.0
WARM_UP_CALLS = 2


def in_turns(cases: dict[str, Callable[[], object]], rounds: int) -> dict[str, list[float]]:
    """Return the microseconds of every case and round."""
    spans: dict[str, list[float]] = {name: [] for name in cases}
    started, number = time.perf_counter(), 0
    while number < WARM_UP_ROUNDS + MIN_ROUNDS or (
        number < WARM_UP_ROUNDS + rounds and time.perf_counter() - started < MOST_S
    ):
        # What ran before has emptied the caches, so each case runs warm and in both orders.
        for name, case in (reversed if number % 2 else iter)(cases.items()):
            for _ in range(WARM_UP_CALLS):
                case()
            begun = time.perf_counter()
            case()
            spans[name].append(1e6 * (time.perf_counter() - begun))
        number += 1
    return {name: values[WARM_UP_ROUNDS:] for name, values in spans.items()}
