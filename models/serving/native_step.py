"""The step of serving by compiled C++ (`native.cpp`)."""

import ctypes
from collections.abc import Sequence

import torch
from torch import Tensor
from torch.nn import functional as F

from models.serving.folded import FoldedBlock
from models.serving.native import ADDRESS, SIZE, NativeServing, is_plain
from models.shapes import EventItems, EventOutputs, UserLengths, UserStates


class _Affine(ctypes.Structure):
    _fields_ = (("panels", ADDRESS), ("bias", ADDRESS), ("depth", SIZE), ("width", SIZE))


class _Norm(ctypes.Structure):
    _fields_ = (("weight", ADDRESS), ("bias", ADDRESS))


class _Block(ctypes.Structure):
    _fields_ = (
        ("lam", ADDRESS),
        ("recurrent_in", _Affine),
        ("recurrent_out", _Affine),
        ("recurrent_norm", _Norm),
        ("inner", _Affine),
        ("outer", _Affine),
        ("norm", _Norm),
    )


class _Model(ctypes.Structure):
    _fields_ = (
        ("embedding", ADDRESS),
        ("blocks", ctypes.POINTER(_Block)),
        ("items", SIZE),
        ("width", SIZE),
        ("channels", SIZE),
        ("n_blocks", SIZE),
    )


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
        """Do what `models.serving.model.ServingModel.advance` does.

        Returns:
            None where the arguments are not as described there, or not on the CPU.
        """
        users, events = lengths.numel(), items.numel()
        if not (
            is_plain(state, torch.complex64, (users, *self._state_shape))
            and is_plain(items, torch.int64, (events,))
            and is_plain(lengths, torch.int64, (users,))
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
