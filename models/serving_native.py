"""Serving on the CPU in C++ (`serving_native.cpp`): the step, and the k best items.

What `models.serving` and `models.top_k` do by torch, without what a torch call costs, and for top-k
without a score ever leaving the cache. A row's numbers are the same bits in any batch and with any
number of threads; of items with equal scores, those of lower index come first.
"""

import ctypes
from collections.abc import Sequence
from pathlib import Path
from typing import Literal

import torch
from torch import Tensor
from torch.nn import functional as F

from models.folded import FoldedBlock
from models.native_build import NativeUnavailable, build_library
from models.shapes import (
    EventItems,
    EventOutputs,
    ExcludedItems,
    TopItems,
    TopScores,
    UserLengths,
    UserOutputs,
    UserStates,
    VocabularyFlags,
)

SOURCE = Path(__file__).with_name("serving_native.cpp")

SMALL_PRODUCTS = 4_000_000
"""Multiplications up to which a call uses one thread and keeps the interpreter's lock: about
0.1 ms, while another thread that takes the lock may keep it for milliseconds."""

MIN_BYTES_ITEMS_OF_K = 1_000
"""Items for each one of a list from which on a first pass over bytes is faster than one over
floats at 256 users; for fewer users it is so for longer lists, too."""

_ADDRESS, _SIZE = ctypes.c_void_p, ctypes.c_int64


class _Affine(ctypes.Structure):
    _fields_ = (("panels", _ADDRESS), ("bias", _ADDRESS), ("depth", _SIZE), ("width", _SIZE))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", _ADDRESS), ("bias", _ADDRESS))


class _Block(ctypes.Structure):
    _fields_ = (
        ("lam", _ADDRESS),
        ("recurrent_in", _Affine),
        ("recurrent_out", _Affine),
        ("recurrent_norm", _Norm),
        ("inner", _Affine),
        ("outer", _Affine),
        ("norm", _Norm),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("embedding", _ADDRESS),
        ("blocks", ctypes.POINTER(_Block)),
        ("items", _SIZE),
        ("width", _SIZE),
        ("channels", _SIZE),
        ("n_blocks", _SIZE),
    )


class _Catalogue(ctypes.Structure):
    _fields_ = (
        ("panels", _ADDRESS),
        ("rows", _ADDRESS),
        ("bias", _ADDRESS),
        ("bytes", _ADDRESS),
        ("scale", _ADDRESS),
        ("above", _ADDRESS),
        ("rest", _ADDRESS),
        ("norm", _ADDRESS),
        ("items", _SIZE),
        ("width", _SIZE),
        ("most_weight", ctypes.c_float),
        ("most_bias", ctypes.c_float),
        ("widest", ctypes.c_float * 4),
    )


class NativeServing:
    """The compiled functions, for any number of models and threads.

    Args:
        library: What `serving_native.cpp` was compiled to.
    """

    def __init__(self, library: Path) -> None:
        # The same library twice: calls by the first keep the interpreter's lock.
        self._small, self.large = ctypes.PyDLL(str(library)), ctypes.CDLL(str(library))
        for functions in (self._small, self.large):
            functions.serving_top_k.argtypes = [
                *[_ADDRESS] * 4, *[_SIZE] * 3, *[_ADDRESS] * 2, ctypes.c_int
            ]  # fmt: skip
            functions.serving_make_bytes.argtypes = [_ADDRESS] * 6
            functions.serving_bounds.argtypes = [_ADDRESS, _ADDRESS, _SIZE, _ADDRESS, _ADDRESS]
            functions.serving_advance.argtypes = [
                *[_ADDRESS] * 4, *[_SIZE] * 2, *[_ADDRESS] * 2, ctypes.c_int
            ]  # fmt: skip
            functions.serving_erf.argtypes = [_ADDRESS, _ADDRESS, _SIZE]
            functions.serving_erf.restype = None
            functions.serving_panel.restype = functions.serving_bytes_fast_from.restype = _SIZE
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


class NativeCatalogue:
    """The items of one model, laid out for top-k.

    Args:
        native: The compiled functions.
        weight: float32 (v, d), row 0 the pad token's; not copied, so it must stay as it is.
        bias: float32 (v,), likewise.
        first_pass: What all weights are read as: floats, or bytes, a quarter of the memory, whose
            bounds say which items to score in floats (`serving_bytes.h`). The same lists, to the
            bit. None: bytes where they are faster. Floats, too, where no bounds can be had: of
            numbers from 1e36 on, or more than 1,024 of them an item.
    """

    def __init__(
        self,
        native: NativeServing,
        weight: Tensor,
        bias: Tensor,
        first_pass: Literal["floats", "bytes"] | None = None,
    ) -> None:
        self._native = native
        self._weight: Tensor | None = weight.contiguous()
        self._bias, self._width = bias.contiguous(), weight.shape[1]
        self._kept = list[Tensor]()  # what the addresses below are of
        wanted = first_pass or ("bytes" if self._bytes_are_faster(1) else "floats")
        self._bytes = self._make_bytes() if wanted == "bytes" else None
        self._floats: _Catalogue | None = None
        self._chooses = first_pass is None
        if self._bytes is None:
            self._floats = self._make_floats()
            self._weight = None  # the panels hold it

    @property
    def first_pass(self) -> Literal["floats", "bytes"]:
        """What the weights are read as, at least for short lists."""
        return "floats" if self._bytes is None else "bytes"

    def weight(self) -> Tensor:
        """Return the weights, float32 (v, d): maybe a copy, for what is done seldom."""
        if self._weight is None:
            return self._kept[0].transpose(1, 2).flatten(0, 1)[: len(self._bias)]
        return self._weight

    def _bytes_are_faster(self, k: int) -> bool:
        fast_from = self._native.bytes_fast_from
        return fast_from > 0 and max(fast_from, k * MIN_BYTES_ITEMS_OF_K) <= len(self._bias)

    def _catalogue_for(self, k: int) -> _Catalogue:
        """Return the layout to find k items by; that of floats is made when first needed."""
        if self._bytes is not None and (not self._chooses or self._bytes_are_faster(k)):
            return self._bytes
        if self._floats is None:
            self._floats = self._make_floats()
        return self._floats

    def _make_floats(self) -> _Catalogue:
        panels = self._native.panels(self.weight().t())
        self._kept.append(panels)
        return self._catalogue(panels=panels)

    def _make_bytes(self) -> _Catalogue | None:
        """Lay the items out for the first pass over bytes; None if no bounds can be had."""
        panels = -(-len(self._bias) // self._native.panel)
        padded = panels * self._native.panel
        made = {
            "bytes": torch.empty((padded, -(-self._width // 4) * 4), dtype=torch.uint8),
            "scale": torch.empty(padded),
            "above": torch.empty(padded),
            "rest": torch.empty(panels),
            "norm": torch.empty(panels),
        }
        catalogue = self._catalogue(rows=self.weight(), **made)
        addresses = [tensor.data_ptr() for tensor in made.values()]
        if self._native.large.serving_make_bytes(ctypes.addressof(catalogue), *addresses):
            return None
        self._kept += made.values()
        return catalogue

    def _catalogue(self, **parts: Tensor) -> _Catalogue:
        return _Catalogue(
            **{name: part.data_ptr() for name, part in parts.items()},
            bias=self._bias.data_ptr(),
            items=len(self._bias),
            width=self._width,
        )

    def bounds(self, outputs: UserOutputs) -> tuple[Tensor, Tensor] | None:
        """Return bounds of every score from below and above, float32 (u, v), as bytes give them.

        Returns:
            None where the outputs are too large for it, or the first pass is not over bytes.
        """
        if self._bytes is None:
            return None
        lower, upper = (torch.empty((len(outputs), len(self._bias))) for _ in range(2))
        wrong = self._native.large.serving_bounds(
            ctypes.addressof(self._bytes),
            outputs.contiguous().data_ptr(),
            len(outputs),
            lower.data_ptr(),
            upper.data_ptr(),
        )
        return None if wrong else (lower, upper)

    def top_k(
        self,
        outputs: UserOutputs,
        k: int,
        excluded: ExcludedItems | None,
        unavailable: VocabularyFlags | None,
    ) -> tuple[TopScores, TopItems] | None:
        """Do what `models.top_k.top_k` does; of equal scores, the lower item comes first.

        A score is a chain of d fused multiply-adds that starts from the bias: within
        (d + 1) 2^-24 (|bias| + sum |output| |weight|) of the exact one, to first order.

        Returns:
            None where the arguments are not as described there.
        """
        v, (users, width) = len(self._bias), outputs.shape
        if (
            k < 1
            or not _is(outputs, torch.float32, (users, self._width))
            or not (excluded is None or _is(excluded, torch.int64, (users, excluded.shape[-1])))
            or not (unavailable is None or _is(unavailable, torch.bool, (v,)))
        ):
            return None
        outputs = outputs.contiguous()
        excluded = None if excluded is None else excluded.contiguous()
        unavailable = None if unavailable is None else unavailable.contiguous()
        scores, items = torch.empty((users, k)), torch.empty((users, k), dtype=torch.int64)
        functions, threads = self._native.functions_for(users * v * width)
        wrong = functions.serving_top_k(
            ctypes.addressof(self._catalogue_for(k)),
            outputs.data_ptr(),
            None if excluded is None else excluded.data_ptr(),
            None if unavailable is None else unavailable.data_ptr(),
            users,
            k,
            0 if excluded is None else excluded.shape[1],
            scores.data_ptr(),
            items.data_ptr(),
            threads,
        )
        return None if wrong else (scores, items)


class NativeStep:
    """The blocks of one model, laid out for steps.

    Args:
        native: The compiled functions.
        embedding: float32 (v, d), normalised.
        blocks: On the CPU; they are copied.
    """

    def __init__(
        self, native: NativeServing, embedding: Tensor, blocks: Sequence[FoldedBlock]
    ) -> None:
        self._native = native
        self._embedding = embedding.contiguous()
        self._kept = list[Tensor]()  # what the addresses below are of
        self._blocks = (_Block * len(blocks))(*map(self._block, blocks))
        (items, width), channels = embedding.shape, len(blocks[0].lam)
        self._model = _Model(
            self._embedding.data_ptr(), self._blocks, items, width, channels, len(blocks)
        )
        self._address = ctypes.addressof(self._model)
        self._state_shape = (len(blocks), channels)
        self._products = sum(tensor.numel() for tensor in self._kept)  # of one event, roughly

    def advance(
        self, state: UserStates, items: EventItems, lengths: UserLengths
    ) -> tuple[UserStates, EventOutputs] | None:
        """Do what `models.serving.ServingModel.advance` does.

        Returns:
            None where the arguments are not as described there, or not on the CPU.
        """
        users, events = lengths.numel(), items.numel()
        if not (
            _is(state, torch.complex64, (users, *self._state_shape))
            and _is(items, torch.int64, (events,))
            and _is(lengths, torch.int64, (users,))
        ):
            return None
        state, items, lengths = state.contiguous(), items.contiguous(), lengths.contiguous()
        new_state = torch.empty_like(state)
        outputs = torch.empty((events, self._model.width))
        functions, threads = self._native.functions_for(events * self._products)
        wrong = functions.serving_advance(
            self._address,
            state.data_ptr(),
            items.data_ptr(),
            lengths.data_ptr(),
            users,
            events,
            new_state.data_ptr(),
            outputs.data_ptr(),
            threads,
        )
        return None if wrong else (new_state, outputs)

    def _block(self, block: FoldedBlock) -> _Block:
        return _Block(
            self._keep(block.lam),
            self._affine(*block.recurrent_in),
            self._affine(*block.recurrent_out),
            _Norm(*map(self._keep, block.recurrent_norm)),
            self._affine(*block.inner),
            self._affine(*block.outer),
            _Norm(*map(self._keep, block.norm)),
        )

    def _affine(self, bias: Tensor, weight: Tensor) -> _Affine:
        panels = self._native.panels(weight)
        count, depth, panel = panels.shape
        filled = F.pad(bias, (0, count * panel - len(bias)))
        return _Affine(self._keep(panels), self._keep(filled), depth, count * panel)

    def _keep(self, tensor: Tensor) -> int:
        """Return the address of a tensor that will live as long as this."""
        self._kept.append(tensor.contiguous())
        return self._kept[-1].data_ptr()


def _is(tensor: Tensor, dtype: torch.dtype, shape: tuple[int, ...]) -> bool:
    """Tell whether its memory, once contiguous, holds what it says: no conjugation still to do."""
    is_plain = tensor.is_cpu and not (tensor.is_conj() or tensor.is_neg())
    return tensor.dtype == dtype and is_plain and tensor.shape == shape


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
