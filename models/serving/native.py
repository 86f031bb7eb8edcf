"""Serving on the CPU by compiled C++ (`native.cpp`): how its functions are had and called.

`native_step` and `native_top_k` call them: what `model` and `top_k` do by torch, without what a
torch call costs. A row's numbers are the same bits in any batch and with any number of threads.
"""

import ctypes
from pathlib import Path

import torch
from torch import Tensor
from torch.nn import functional as F

from models.native_build import NativeUnavailable, build_library

SOURCE = Path(__file__).with_name("native.cpp")

SMALL_PRODUCTS = 4_000_000
"""Multiplications up to which a call uses one thread and keeps the interpreter's lock: about
0.1 ms, while another thread that takes the lock may keep it for milliseconds."""

ADDRESS, SIZE = ctypes.c_void_p, ctypes.c_int64


class NativeServing:
    """The compiled functions, for any number of models and threads.

    Args:
        library: What `native.cpp` was compiled to.
    """

    def __init__(self, library: Path) -> None:
        # The same library twice: calls by the first keep the interpreter's lock.
        self._small, self.large = ctypes.PyDLL(str(library)), ctypes.CDLL(str(library))
        for functions in (self._small, self.large):
            functions.serving_top_k.argtypes = [
                *[ADDRESS] * 4, *[SIZE] * 3, *[ADDRESS] * 2, ctypes.c_int
            ]  # fmt: skip
            functions.serving_make_bytes.argtypes = [ADDRESS] * 6
            functions.serving_bounds.argtypes = [ADDRESS, ADDRESS, SIZE, ADDRESS, ADDRESS]
            functions.serving_advance.argtypes = [
                *[ADDRESS] * 4, *[SIZE] * 2, *[ADDRESS] * 2, ctypes.c_int
            ]  # fmt: skip
            functions.serving_erf.argtypes = [ADDRESS, ADDRESS, SIZE]
            functions.serving_erf.restype = None
            functions.serving_panel.restype = functions.serving_bytes_fast_from.restype = SIZE
        self.panel: int = self._small.serving_panel()
        self.bytes_fast_from: int = self._small.serving_bytes_fast_from()

    def functions_for(self, products: int) -> tuple[ctypes.CDLL, int]:
        """Return the functions to call for so much work, and the number of threads."""
        if products <= SMALL_PRODUCTS:
            return self._small, 1
        return self.large, torch.get_num_threads()

    def panels(self, matrix: Tensor) -> Tensor:
        """Return a matrix (in, out) as panels (out / panel, in, panel), filled up with zeros."""
        depth, width = matrix.shape
        count = -(-width // self.panel)
        filled = F.pad(matrix, (0, count * self.panel - width))
        return filled.view(depth, count, self.panel).transpose(0, 1).contiguous()

    def erf(self, z: Tensor) -> Tensor:
        """Return the error function of float32 (n,) as the step computes it; n a multiple of 16."""
        y = torch.empty_like(z)
        self.large.serving_erf(z.data_ptr(), y.data_ptr(), z.numel())
        return y


def load_native_serving(folder: Path) -> NativeServing:
    """Return the compiled functions, built now if the folder does not hold them; takes seconds.

    Args:
        folder: Where libraries are kept, see `models.native_build.build_library`.

    Raises:
        NativeUnavailable: There is no compiler, it fails, or the folder cannot be written.
    """
    library = build_library(SOURCE, "serving", folder)
    try:
        return NativeServing(library)
    except OSError as error:
        msg = f"{library} cannot be loaded: {error}"
        raise NativeUnavailable(msg) from error


def is_plain(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Tell whether its memory, once contiguous, holds what it says: no conjugation still to do."""
    is_resolved = tensor.is_cpu and not (tensor.is_conj() or tensor.is_neg())
    return tensor.dtype == dtype and is_resolved and tensor.shape == shape
