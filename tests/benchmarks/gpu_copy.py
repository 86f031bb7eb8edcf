"""The speed of a device's memory: what a copy beyond its caches reaches, and no launch in it."""

from collections.abc import Callable

import torch
from torch import Tensor

from models.serving.graphs import Body, Capture

CALLS = 10
"""Calls of one graph: the device goes from one to the next, and no launch is timed."""
CACHES = 8
"""A copy moves so many times as much as the device's cache holds, each way."""


def large_copy(device: torch.device, least_bytes: int) -> tuple[Body, int]:
    """Return a copy from one tensor to another, and the bytes that it moves, there and back.

    At least `least_bytes` each way: on a GPU its cache would hold much of less, and be faster.
    """
    is_cuda = device.type == "cuda"
    cache_bytes = torch.cuda.get_device_properties(device).L2_cache_size if is_cuda else 0
    source = torch.zeros(max(least_bytes, CACHES * cache_bytes), dtype=torch.uint8, device=device)
    target = torch.empty_like(source)
    return (lambda: target.copy_(source)), 2 * source.nbytes


def repeated(work: Body, device: torch.device, capture: Capture) -> Callable[[], Tensor]:
    """Return `CALLS` calls of work by one graph, and the wait for the last one."""

    def body() -> Tensor:
        for _ in range(CALLS - 1):
            work()
        return work()

    replay = capture(body, device)

    def run() -> Tensor:
        result = replay()
        finish(device)
        return result

    return run


def finish(device: torch.device) -> None:
    """Wait until the device has done everything."""
    if device.type == "cuda":
        torch.cuda.synchronize(device)
