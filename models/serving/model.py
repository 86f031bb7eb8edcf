"""The model as it serves: states in, states and outputs out, one step an event.

Computes what `models.recommender.Recommender` computes in evaluation mode, from weights that are
folded once: gamma into the input projection, layer norm into the embedding. By torch on any device;
on the CPU by `models.serving.native` where that is at hand.
"""

from collections.abc import Iterator

import torch
from torch import Tensor
from torch.nn import functional as F

from models.lru import Block
from models.recommender import Recommender
from models.scan import PackedLayout
from models.serving.folded import FoldedBlock
from models.serving.native import NativeServing
from models.serving.native_step import NativeStep
from models.serving.native_top_k import NativeCatalogue
from models.serving.top_k import top_k
from models.serving.top_k_rounded import RoundedItems
from models.shapes import (
    EventItems,
    EventOutputs,
    ExcludedItems,
    Output,
    SlotStates,
    TopItems,
    TopScores,
    UserItems,
    UserLengths,
    UserOutputs,
    UserScores,
    UserSlots,
    UserStates,
    VocabularyFlags,
)
from models.transfers import to_device

MAX_ROWS = 8192
"""Events that `ServingModel.advance` takes through the blocks at once, unless one step has more."""

WALKED_ROWS = 32
"""Up to so many events are walked over one by one, on the CPU, instead of ordered by time."""


class ServingModel:
    """Frozen weights on one device; every method is pure and may be called from any thread.

    Results are inference tensors: use and copy them anywhere, write to them in inference mode only.

    In torch, rows of different batch sizes go through different matrix kernels, so the same user's
    numbers may differ in their last bits between batches; they never drift apart, because
    |lambda| < 1. The native form gives the same bits in every batch.

    Args:
        recommender: the trained model; its weights are copied.
        device: where states and outputs live. Indices may come from anywhere; from the CPU they
            are checked without waiting for the device.
        native: the compiled form, used where the device is the CPU; None: torch.
    """

    def __init__(
        self,
        recommender: Recommender,
        device: torch.device | str = "cpu",
        native: NativeServing | None = None,
    ) -> None:
        self.config = recommender.config
        self.device = torch.device(device)
        with torch.inference_mode():
            weight, self._bias = (
                parameter.detach().to(self.device, torch.float32, copy=True)
                for parameter in (recommender.item_embedding, recommender.item_bias)
            )
            norm = recommender.embedding_norm
            self._embedding = F.layer_norm(
                recommender.item_embedding, norm.normalized_shape, norm.weight, norm.bias
            ).to(self.device, torch.float32)
            self._blocks = tuple(
                FoldedBlock.fold(block, self.device)
                for block in recommender.blocks
                if isinstance(block, Block)
            )
            self._native: tuple[NativeStep, NativeCatalogue] | None = None
            self._weight: Tensor | None = None
            self._rounded: RoundedItems | None = None
            if native is not None and self.device.type == "cpu":
                self._native = (
                    NativeStep(native, self._embedding, self._blocks),
                    NativeCatalogue(native, weight, self._bias),
                )
            else:
                # As scores read it; a GPU reads either way, if rows are a multiple of 16 bytes.
                is_cuda = self.device.type == "cuda"
                self._weight = weight if is_cuda else weight.t().contiguous().t()
                self._rounded = RoundedItems.for_device(self._weight, self._bias)
            pad = torch.zeros(1, dtype=torch.int64)
            self._cold_start = self.advance(self.init_state(1), pad, torch.ones_like(pad))[1][0]

    def init_state(self, n: int) -> UserStates:
        """Return the state of n users without history: zeros, an ordinary tensor to write into."""
        shape = (n, self.config.n_blocks, self.config.state_size)
        return torch.zeros(shape, dtype=torch.complex64, device=self.device)

    @torch.inference_mode()
    def advance(
        self, state: UserStates, items: EventItems, lengths: UserLengths
    ) -> tuple[UserStates, EventOutputs]:
        """Move each user's state over the user's new items.

        Args:
            state: each user's state before them; not written to.
            items: indices in 0..n_items: user 0's, oldest first, then user 1's, and so on.
            lengths: how many of them each user has, at least 1, their sum e. In torch, if all are
                1, the cost is that of one step; otherwise there are as many small steps as the
                longest has.

        Returns:
            Each user's state after the last item, and the output after every item.

        Raises:
            ValueError: a length is below 1, the lengths do not add up to e, an item is outside the
                vocabulary, or the state's shape is not that of u users.
        """
        if self._native is not None:
            advanced = self._native[0].advance(state, items, lengths)
            if advanced is not None:
                return advanced
        self._check(state, items, lengths)
        items = to_device(items, self.device)
        if lengths.numel() == items.numel():
            return self._step(state, items)
        if items.numel() <= WALKED_ROWS and self.device.type == "cpu":
            return self._walk(state, items, lengths)
        return self._scan(state, items, PackedLayout.from_lengths(lengths))

    def step_slots(self, states: SlotStates, slots: UserSlots, items: UserItems) -> UserOutputs:
        """Move states where they lie by one item each; what `models.serving.graphs` captures.

        All on the device. Nothing is checked, so nothing waits; of equal slots any one counts.
        """
        states[slots], outputs = self._step(states[slots], items)
        return outputs

    def _step(self, state: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        new_state = torch.empty_like(state)
        x = F.embedding(items, self._embedding)
        for index, block in enumerate(self._blocks):
            h = new_state[:, index]
            torch.addcmul(_inputs(block, x), block.lam, state[:, index], out=h)
            x = _read(block, h, x)
        return new_state, x

    def _walk(self, state: Tensor, items: Tensor, lengths: Tensor) -> tuple[Tensor, Tensor]:
        """Advance event by event: for a handful, ordering them by time costs more than it saves."""
        new_state = state.clone()
        states = new_state.numpy()
        users = torch.repeat_interleave(lengths).tolist()
        x = F.embedding(items, self._embedding)
        for index, block in enumerate(self._blocks):
            u = _inputs(block, x)
            lam, rows = block.lam.numpy(), u.numpy()
            for row, user in zip(rows, users, strict=True):
                row += lam * states[user, index]
                states[user, index] = row
            x = _read(block, u, x)
        return new_state, x

    def _scan(self, state: Tensor, items: Tensor, layout: PackedLayout) -> tuple[Tensor, Tensor]:
        """Advance time-major, a bounded number of rows at a time."""
        order, rank, to_time_major, to_packed = (
            to_device(index, self.device)
            for index in (layout.order, layout.rank, layout.to_time_major, layout.to_packed)
        )
        new_state = state[order]
        items = items[to_time_major]
        outputs = []
        for first_row, batch_sizes in _stretches(layout.batch_sizes):
            x = F.embedding(items[first_row : first_row + sum(batch_sizes)], self._embedding)
            for index, block in enumerate(self._blocks):
                u = _inputs(block, x)
                carry = new_state[: batch_sizes[0], index]
                steps = torch.split(u, batch_sizes)
                for rows, now, later in zip(steps, batch_sizes, [*batch_sizes[1:], 0], strict=True):
                    rows.addcmul_(block.lam, carry[:now])
                    if later < now:
                        new_state[later:now, index] = rows[later:]
                    carry = rows
                x = _read(block, u, x)
            outputs.append(x)
        return new_state[rank], torch.cat(outputs)[to_packed]

    @torch.inference_mode()
    def readout(self, state: UserStates, items: UserItems) -> UserOutputs:
        """Return each user's output after the last item, from a state that already holds it.

        Raises:
            ValueError: an item is outside the vocabulary, or the state's shape is not that of u
                users.
        """
        self._check(state, items, torch.ones_like(items))
        x = F.embedding(to_device(items, self.device), self._embedding)
        for index, block in enumerate(self._blocks):
            x = _read(block, state[:, index], x)
        return x

    def cold_start(self) -> Output:
        """Return the output for a user without history: the pad token's, from the zero state."""
        return self._cold_start

    @torch.inference_mode()
    def scores(self, outputs: UserOutputs) -> UserScores:
        """Return the score of every item as the next one; column 0 is the pad token."""
        return torch.addmm(self._bias, outputs, self._weights().t())

    @torch.inference_mode()
    def top_k(
        self,
        outputs: UserOutputs,
        k: int,
        excluded: ExcludedItems | None = None,
        unavailable: VocabularyFlags | None = None,
    ) -> tuple[TopScores, TopItems]:
        """Return each user's k best items: `top_k` with this model's weights."""
        if unavailable is not None:
            unavailable = to_device(unavailable, self.device)
        if self._native is not None:
            best = self._native[1].top_k(outputs, k, excluded, unavailable)
            if best is not None:
                return best
        if self._rounded is not None:
            return self._rounded.top_k(outputs, k, excluded, unavailable)
        return top_k(outputs, self._weights(), self._bias, k, excluded, unavailable)

    def _weights(self) -> Tensor:
        """Return the item weights (v, d)."""
        if self._weight is not None:
            return self._weight
        assert self._native is not None
        return self._native[1].weight()

    def _check(self, state: Tensor, items: Tensor, lengths: Tensor) -> None:
        users = lengths.numel()
        shape = (users, self.config.n_blocks, self.config.state_size)
        if tuple(state.shape) != shape:
            msg = f"the state of {users} users must have shape {shape}, got {tuple(state.shape)}"
            raise ValueError(msg)
        # By numpy where it costs nothing: it takes a third of the time for a handful of them.
        counts, indices = lengths.cpu().numpy(), items.cpu().numpy()
        if users and counts.min() < 1:
            msg = f"each user must have at least 1 item, got a length of {int(counts.min())}"
            raise ValueError(msg)
        if counts.sum() != indices.size:
            msg = f"lengths must add up to the {indices.size} items, got {int(counts.sum())}"
            raise ValueError(msg)
        if indices.size:
            least, most = int(indices.min()), int(indices.max())
            if least < 0 or most > self.config.n_items:
                msg = f"items must be in 0..{self.config.n_items}, got {least}..{most}"
                raise ValueError(msg)


def _stretches(batch_sizes: tuple[int, ...]) -> Iterator[tuple[int, list[int]]]:
    """Cut steps into stretches of at most MAX_ROWS rows: (first row, batch sizes) of each."""
    first_row, rows, sizes = 0, 0, list[int]()
    for size in batch_sizes:
        if sizes and rows + size > MAX_ROWS:
            yield first_row, sizes
            first_row, rows, sizes = first_row + rows, 0, []
        rows += size
        sizes.append(size)
    yield first_row, sizes


def _inputs(block: FoldedBlock, x: Tensor) -> Tensor:
    """Return what the recurrence adds at each row, complex (rows, c)."""
    bias, weight = block.recurrent_in
    u = torch.addmm(bias, x, weight)
    return torch.view_as_complex(u.view(x.shape[0], block.lam.shape[0], 2))


def _read(block: FoldedBlock, h: Tensor, x: Tensor) -> Tensor:
    """Return the block's output (rows, d) for states h (rows, c), which hold x already."""
    bias, weight = block.recurrent_out
    y = torch.addmm(bias, torch.view_as_real(h).flatten(1), weight).add_(x)
    x = F.layer_norm(y, y.shape[1:], *block.recurrent_norm)
    bias, weight = block.inner
    inner = F.gelu(torch.addmm(bias, x, weight))
    bias, weight = block.outer
    y = torch.addmm(bias, inner, weight).add_(x)
    return F.layer_norm(y, y.shape[1:], *block.norm)
