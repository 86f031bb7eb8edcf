"""Ways between the CPU and a device, by page-locked memory, waiting as little as possible.

On a GPU, a plain copy to or from memory of the CPU waits for all work before it, and is staged by
the driver. Between tensors of the CPU nothing is copied.
"""

from typing import Any

import numpy.typing as npt
import torch
from torch import Tensor

_CPU = torch.device("cpu")


def to_device(tensor: Tensor, device: torch.device) -> Tensor:
    """Bring a tensor to a device; from the CPU, without waiting for a GPU to take it."""
    if device == _CPU and tensor.is_cpu:  # first and by the cheapest questions
        return tensor
    if device.type != "cuda" or not tensor.is_cpu:
        return tensor.to(device)
    # The allocator of page-locked memory gives it to no one else before the copy is done.
    return tensor.pin_memory().to(device, non_blocking=True)


def to_host(*tensors: Tensor) -> list[npt.NDArray[Any]]:
    """Return tensors of one device as arrays, after one wait for all; the CPU's share memory."""
    if tensors[0].is_cpu:
        return [tensor.numpy() for tensor in tensors]
    copies = [torch.empty(tensor.shape, dtype=tensor.dtype, pin_memory=True) for tensor in tensors]
    for copy, tensor in zip(copies, tensors, strict=True):
        copy.copy_(tensor, non_blocking=True)
    torch.cuda.current_stream(tensors[0].device).synchronize()
    return [copy.numpy() for copy in copies]
