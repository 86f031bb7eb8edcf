"""The k best items by compiled C++ (`top_k.h`): without a score ever leaving the cache.

Of items with equal scores, those of lower index come first.
"""

import ctypes
from typing import Literal

import torch
from torch import Tensor

from models.serving.native import ADDRESS, SIZE, NativeServing, is_plain
from models.shapes import ExcludedItems, TopItems, TopScores, UserOutputs, VocabularyFlags

MIN_BYTES_ITEMS_OF_K = 1_000
"""Items for each one of a list from which on a first pass over bytes is faster than one over
floats at 256 users; for fewer users it is so for longer lists, too."""


class _Catalogue(ctypes.Structure):
    _fields_ = (
        ("panels", ADDRESS),
        ("rows", ADDRESS),
        ("bias", ADDRESS),
        ("bytes", ADDRESS),
        ("scale", ADDRESS),
        ("above", ADDRESS),
        ("rest", ADDRESS),
        ("norm", ADDRESS),
        ("items", SIZE),
        ("width", SIZE),
        ("most_weight", ctypes.c_float),
        ("most_bias", ctypes.c_float),
        ("widest", ctypes.c_float * 4),
    )


class NativeCatalogue:
    """The items of one model, laid out for top-k.

    Args:
        native: The compiled functions.
        weight: float32 (v, d), row 0 the pad token's; not copied, so it must stay as it is.
        bias: float32 (v,), likewise.
        first_pass: What all weights are read as: floats, or bytes, a quarter of the memory, whose
            bounds say which items to score in floats (`bytes.h`). The same lists, to the
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
        """Do what `models.serving.top_k.top_k` does; of equal scores, the lower item comes first.

        A score is a chain of d fused multiply-adds that starts from the bias: within
        (d + 1) 2^-24 (|bias| + sum |output| |weight|) of the exact one, to first order.

        Returns:
            None where the arguments are not as described there.
        """
        v, (users, width) = len(self._bias), outputs.shape
        if (
            k < 1
            or not is_plain(outputs, torch.float32, (users, self._width))
            or not (
                excluded is None or is_plain(excluded, torch.int64, (users, excluded.shape[-1]))
            )
            or not (unavailable is None or is_plain(unavailable, torch.bool, (v,)))
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
