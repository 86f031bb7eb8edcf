"""Single steps on a GPU by one launch: CUDA graphs that read and write states where they lie.

A step is some thirty small kernels, and for few users their launches take longer than their work.
A graph repeats them all by one launch, but only on the very memory that they were captured with:
so one is kept for every power of two of users, over fixed buffers of slots and items, filled up
with a slot that belongs to nobody; and all are given up when the model or the states' tensor is
another one.

Whether a graph repeats truly what was captured is not taken on trust, see `StepGraphs.step`.
"""

import logging
import threading
from collections.abc import Callable

import torch
from torch import Tensor

from models.serving.model import ServingModel
from models.shapes import EventItems, EventOutputs, SlotStates, UserSlots
from models.transfers import to_device

MIN_USERS = 8
"""Below, a smaller graph is not faster."""

MAX_USERS = 4096
"""Above, launches are a small part of a step."""

TOLERANCE = 1e-4
"""Largest difference that float32 kernels for other numbers of rows may make, of the largest value;
what a wrong graph does is of the size of the values."""

WARM_UP_RUNS = 3
"""Runs before a capture, as PyTorch wants them: libraries set themselves up on the first ones."""

Body = Callable[[], Tensor]
"""Work on memory that stays where it is; returns its outputs."""

Capture = Callable[[Body, torch.device], Body]
"""Makes of a body one that does the same, and may return the same memory every time."""

SETTING_UP = threading.Lock()
"""Held while a graph is captured, and by a thread that loads a model onto a device: the libraries
that this starts may wait for the whole device, which ends a capture elsewhere."""

logger = logging.getLogger(__name__)


def capture_cuda(body: Body, device: torch.device) -> Body:
    """Return the body as a CUDA graph; while it is captured nothing happens but the warm-up.

    Other threads may allocate and launch meanwhile, but neither capture nor wait for the device.
    """
    # The outer stream so that a capture that fails cannot leave its own as the current one.
    with torch.cuda.device(device), torch.cuda.stream(torch.cuda.current_stream(device)):
        beside = torch.cuda.Stream()  # type: ignore[no-untyped-call]
        beside.wait_stream(torch.cuda.current_stream())
        with torch.cuda.stream(beside):
            for _ in range(WARM_UP_RUNS):
                body()
        torch.cuda.current_stream().wait_stream(beside)
        graph = torch.cuda.CUDAGraph()
        # "thread_local": a release that another thread loads now may allocate memory.
        with torch.cuda.graph(graph, capture_error_mode="thread_local"):
            outputs = body()

    def replay() -> Tensor:
        graph.replay()
        return outputs

    return replay


class _Bucket:
    """The graph for up to a certain number of users."""

    def __init__(
        self, model: ServingModel, states: SlotStates, size: int, capture: Capture
    ) -> None:
        self._nobody = len(states) - 1
        self._inputs = torch.zeros((2, size), dtype=torch.int64, device=states.device)
        self._inputs[0] = self._nobody  # so that warming up moves no one
        self._replay = capture(
            lambda: model.step_slots(states, self._inputs[0], self._inputs[1]), states.device
        )

    def step(self, slots: UserSlots, items: EventItems) -> EventOutputs:
        users = len(slots)
        # New at every call, so that a copy still under way is not written over.
        staged = torch.zeros(self._inputs.shape, dtype=torch.int64, pin_memory=self._inputs.is_cuda)
        staged[0, :users], staged[0, users:] = slots, self._nobody
        staged[1, :users] = items
        self._inputs.copy_(staged, non_blocking=True)
        return self._replay()[:users].clone()


class StepGraphs:
    """Graphs for one model and one tensor of states at a time. One thread uses this.

    Args:
        capture: `capture_cuda`; tests give others, so that all but the capture runs anywhere.
    """

    def __init__(self, capture: Capture) -> None:
        self._capture = capture
        self._is_off = False
        self._model: ServingModel | None = None
        self._states: Tensor | None = None
        self._buckets: dict[int, _Bucket] = {}

    @torch.inference_mode()
    def step(
        self, model: ServingModel, states: SlotStates, slots: UserSlots, items: EventItems
    ) -> EventOutputs | None:
        """Do what `ServingModel.advance` does, to states in place, if each user has one item.

        A graph's first batch is also computed by `advance`, on a copy of all states. Where a state
        or an output differs, or anything fails, no graph is used in this process any more, and a
        line of the log says why. The result is that of `advance` either way.

        Args:
            model: the weights.
            states: one row a slot, on the model's device; the last one belongs to nobody.
            slots: where each user's state is, all different; on the CPU.
            items: the users' new items, oldest first; on the CPU. Only in a first batch are they
                checked; one outside the vocabulary is an error of the device later.

        Returns:
            The output after every item; None, with nothing done, where this is no work for a
            graph: a user has several items, there are none or too many users, graphs are off, or
            one would have to be captured while a model is loaded.
        """
        if model is not self._model or states is not self._states:
            self._buckets.clear()
            self._model, self._states = model, states
        users = len(slots)
        if self._is_off or len(items) != users or not 0 < users <= MAX_USERS:
            return None
        size = max(MIN_USERS, 1 << (users - 1).bit_length())
        bucket = self._buckets.get(size)
        if bucket is not None:
            return bucket.step(slots, items)
        if not SETTING_UP.acquire(blocking=False):
            return None  # a later batch of this size will do; nobody waits for a model to load
        try:
            return self._first_step(size, model, states, slots, items)
        finally:
            SETTING_UP.release()

    def _first_step(
        self, size: int, model: ServingModel, states: Tensor, slots: Tensor, items: Tensor
    ) -> Tensor | None:
        expected: Tensor | None = None
        outputs: Tensor | None = None
        reason = "its results are not those of single launches"
        try:
            moved = states.clone()
            index = to_device(slots, states.device)
            moved[index], outputs = model.advance(states[index], items, torch.ones_like(items))
            expected = moved
            bucket = _Bucket(model, states, size, self._capture)
            replayed = bucket.step(slots, items)
            if _agree(replayed, outputs) and _agree(states[:-1], expected[:-1]):
                self._buckets[size] = bucket
        except Exception as error:  # whatever it is that a GPU does not do
            reason = f"{type(error).__name__}: {error}".partition("\n")[0]
        if expected is not None:
            states.copy_(expected)
        if size not in self._buckets:
            self._is_off = True
            self._buckets.clear()
            logger.warning("no CUDA graphs from now on; the one for %d users: %s", size, reason)
        return None if expected is None else outputs


def _agree(one: Tensor, other: Tensor) -> bool:
    """Tell whether two tensors are equal up to rounding; a NaN equals nothing."""
    difference, size = (one - other).abs().max(), other.abs().max()
    return bool(difference <= TOLERANCE * (1 + size))
