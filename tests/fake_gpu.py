"""A GPU without memory: what is on `cuda` has a shape and a device, what is on the CPU is real.

Enough to run a micro-batch as it runs on a GPU, find each operation that mixes the two, and count
how often the CPU has to wait. The numbers that come back are zeros.
"""

import sys
from typing import Any

import torch
from torch import Tensor
from torch._subclasses.fake_tensor import FakeTensor, FakeTensorMode
from torch.utils._pytree import tree_leaves

_aten = torch.ops.aten


class FakeGpu(FakeTensorMode):
    """The mode in which there is one. Mixed devices raise `FakeTensorDeviceMismatchError`.

    Attributes:
        waits: Module and function of every place where the CPU waited for the GPU: a value that was
            read, or a copy that is not `non_blocking` or not from or to page-locked memory.
    """

    def __init__(self) -> None:
        super().__init__(allow_non_fake_inputs=True)
        self.waits: list[str] = []
        self._pinned: set[int] = set()  # addresses
        self._kept: list[Tensor] = []  # what they are of

    def current_stream(self, _device: object) -> "FakeGpu":
        """Stand in for `torch.cuda.current_stream`."""
        return self

    def synchronize(self) -> None:
        """Wait for everything, as a stream does."""
        self._wait()

    def __torch_dispatch__(self, func: Any, types: Any, args: Any = (), kwargs: Any = None) -> Any:
        kwargs = kwargs or {}
        if func.namespace == "prim":  # the device of a tensor
            return super().__torch_dispatch__(func, types, args, kwargs)
        if torch._C._dispatch_has_kernel_for_dispatch_key(func.name(), "CompositeImplicitAutograd"):
            with self:  # in inference mode these come as they are; their parts come back here
                return func.decompose(*args, **kwargs)
        tensors = [leaf for leaf in tree_leaves((args, kwargs)) if isinstance(leaf, Tensor)]
        fakes = [tensor for tensor in tensors if isinstance(tensor, FakeTensor)]
        device = kwargs.get("device")
        if device is not None and torch.device(device).type == "cuda":
            return self._to_or_from(func, types, args, kwargs, tensors)
        if not fakes:
            return self._on_cpu(func, args, kwargs)
        if func is _aten._local_scalar_dense.default:
            self._wait()
            return 1
        if func is _aten._to_copy.default or func is _aten.copy_.default:
            return self._to_or_from(func, types, args, kwargs, tensors)
        strangers = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
        if strangers and "index" in str(func):  # torch takes them, and waits while it copies them
            self._wait()
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _on_cpu(self, func: Any, args: Any, kwargs: Any) -> Any:
        if func is _aten._pin_memory.default:
            return self._pin(args[0].clone())
        wants_pinned = kwargs.pop("pin_memory", None)
        result = func(*args, **kwargs)
        return self._pin(result) if wants_pinned else result

    def _pin(self, tensor: Tensor) -> Tensor:
        self._pinned.add(tensor.data_ptr())
        self._kept.append(tensor)
        return tensor

    def _to_or_from(self, func: Any, types: Any, args: Any, kwargs: Any, tensors: Any) -> Any:
        """Copy, create or convert; wait where the CPU is involved and could not go on."""
        of_cpu = [tensor for tensor in tensors if not isinstance(tensor, FakeTensor)]
        to_cpu = str(kwargs.get("device")) == "cpu"
        if of_cpu or to_cpu:
            non_blocking = kwargs.get("non_blocking") or (
                func is _aten.copy_.default and len(args) > 2 and args[2]
            )
            is_pinned = all(tensor.data_ptr() in self._pinned for tensor in of_cpu)
            if to_cpu or not non_blocking or not is_pinned:
                self._wait()
        if func is _aten.copy_.default and not isinstance(args[0], FakeTensor):
            return args[0].zero_()
        if to_cpu:
            return torch.zeros(args[0].shape, dtype=kwargs.get("dtype") or args[0].dtype)
        return super().__torch_dispatch__(func, types, args, kwargs)

    def _wait(self) -> None:
        frame = sys._getframe()
        while frame.f_globals["__name__"].partition(".")[0] not in ("models", "pipeline"):
            assert frame.f_back is not None
            frame = frame.f_back
        self.waits.append(f"{frame.f_globals['__name__']}.{frame.f_code.co_name}")
