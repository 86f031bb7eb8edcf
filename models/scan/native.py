"""The recurrence in C++ (`native.cpp`), compiled on the machine that uses it."""

import ctypes
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.native_build import NativeUnavailable, build_library
from models.scan.layout import Rows

SOURCE = Path(__file__).with_name("native.cpp")

_TYPES = {torch.complex64: "float", torch.complex128: "double"}


class NativeScan:
    """Scans on the CPU, by as many threads as torch has."""

    name = "native"
    device_type = "cpu"

    def __init__(self, library: ctypes.CDLL) -> None:
        self._block: int = library.scan_segments_of_a_block()
        self._forward, self._backward = (
            {
                dtype: _function(library, f"scan_{way}_{kind}", tensors)
                for dtype, kind in _TYPES.items()
            }
            for way, tensors in (("forward", 4), ("backward", 7))
        )

    def forward(self, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows) -> Tensor:
        """Return the state at every row."""
        h = torch.empty_like(u)
        self._forward[u.dtype](*_pointers(u, lam, h0, h), *_shape(rows, u))
        return h

    def backward(
        self, grad: Tensor, h: Tensor, lam: Tensor, h0: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in u and lambda."""
        d, d_lam = torch.empty_like(h), torch.empty_like(lam)
        sums = h.new_empty(-(-len(h0) // self._block), h.shape[1])
        tensors = _pointers(grad, lam, h0, h, d, sums, d_lam)
        self._backward[h.dtype](*tensors, *_shape(rows, h))
        return d, d_lam


def load_native(folder: Path) -> NativeScan:
    """Return the native form, built now if the folder does not hold it; may take a few seconds.

    Args:
        folder: where libraries are kept; made if it is missing. What is in it is run: it must be
            one that only this user writes.

    Raises:
        NativeUnavailable: there is no compiler, it fails, or the folder cannot be written.
    """
    library = build_library(SOURCE, "scan", folder)
    try:
        return NativeScan(ctypes.CDLL(str(library)))
    except OSError as error:
        msg = f"{library} cannot be loaded: {error}"
        raise NativeUnavailable(msg) from error


def _function(library: ctypes.CDLL, name: str, tensors: int) -> Callable[..., None]:
    """Declare a function: tensors, two tables of int64, two sizes, the number of threads."""
    function = library[name]
    sizes = [ctypes.c_int64] * 2
    function.argtypes = [*[ctypes.c_void_p] * (tensors + 2), *sizes, ctypes.c_int]
    function.restype = None
    return function


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _shape(rows: Rows, x: Tensor) -> tuple[int, ...]:
    tables = _pointers(rows.lengths, rows.step)
    return (*tables, rows.lengths.numel(), x.shape[1], torch.get_num_threads())
