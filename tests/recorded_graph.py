"""A CUDA graph's ways without a GPU: operations recorded once, repeated on the very same memory."""

from typing import Any

import torch
from torch import Tensor
from torch.utils._python_dispatch import TorchDispatchMode
from torch.utils._pytree import tree_leaves

from models.serving.graphs import Body

WAITS = (
    torch.ops.aten._local_scalar_dense.default,
    torch.ops.aten.nonzero.default,
    torch.ops.aten._to_copy.default,
)
"""What no CUDA graph may hold: the CPU would have to know a value, or memory changes places."""


class _Recording(TorchDispatchMode):
    def __init__(self) -> None:
        super().__init__()
        self.calls: list[tuple[Any, Any, Any, list[Tensor]]] = []

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        if func in WAITS:
            msg = f"operation not permitted when stream is capturing: {func}"
            raise RuntimeError(msg)
        results = func(*args, **(kwargs or {}))
        self.calls.append((func, args, kwargs or {}, tree_leaves(results)))
        return results


def capture_by_recording(body: Body, device: torch.device) -> Body:
    """Run the body to warm up, then once more and write down each operation on each memory.

    As with a CUDA graph, no Python of the body runs when it is repeated, what it allocated is
    written again, and the outputs are the same memory every time. A capture of CUDA does not
    execute what it records; here it does, which is one more warm-up.
    """
    body()
    with _Recording() as recording:
        outputs = body()

    def replay() -> Tensor:
        for func, args, kwargs, kept in recording.calls:
            for new, old in zip(tree_leaves(func(*args, **kwargs)), kept, strict=True):
                if new.data_ptr() != old.data_ptr():
                    old.copy_(new)
        return outputs

    return replay
