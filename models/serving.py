"""The model as it serves: states in, states and outputs out, one step an event.

Computes what `models.recommender.Recommender` computes in evaluation mode, from weights that are
folded once: gamma into the input projection, layer norm into the embedding. One code path on every
device.
"""

from collections.abc import Iterator
from dataclasses import dataclass

import torch
from torch import Tensor
from torch.nn import functional as F

from models.lru import Block
from models.recommender import Recommender
from models.scan import PackedLayout
from models.shapes import (
    EventItems,
    EventOutputs,
    ExcludedItems,
    Output,
    TopItems,
    TopScores,
    UserItems,
    UserLengths,
    UserOutputs,
    UserScores,
    UserStates,
    VocabularyFlags,
)
from models.top_k import top_k

MAX_ROWS = 8192
"""Events that `ServingModel.advance` takes through the blocks at once, unless one step has more."""


@dataclass(frozen=True, kw_only=True, eq=False)
class _FoldedBlock:
    """Weights of one block, float32; matrices as (in, out), bias first as addmm wants it."""

    lam: Tensor
    recurrent_in: tuple[Tensor, Tensor]
    recurrent_out: tuple[Tensor, Tensor]
    recurrent_norm: tuple[Tensor, Tensor]
    inner: tuple[Tensor, Tensor]
    outer: tuple[Tensor, Tensor]
    norm: tuple[Tensor, Tensor]

    @classmethod
    def fold(cls, block: Block, device: torch.device) -> "_FoldedBlock":
        def affine(weight: Tensor, bias: Tensor) -> tuple[Tensor, Tensor]:
            return copy(bias), copy(weight).t()

        def copy(tensor: Tensor) -> Tensor:
            return tensor.detach().to(device, torch.float32, copy=True)

        lru, feed_forward = block.lru, block.feed_forward
        return cls(
            lam=lru.eigenvalues().detach().to(device, torch.complex64),
            recurrent_in=affine(*lru.input_projection()),
            recurrent_out=affine(lru.out_weight, lru.out_bias),
            recurrent_norm=(copy(lru.norm.weight), copy(lru.norm.bias)),
            inner=affine(feed_forward.weight_1, feed_forward.bias_1),
            outer=affine(feed_forward.weight_2, feed_forward.bias_2),
            norm=(copy(feed_forward.norm.weight), copy(feed_forward.norm.bias)),
        )

    def inputs(self, x: Tensor) -> Tensor:
        """Return what the recurrence adds at each row, complex (rows, c)."""
        bias, weight = self.recurrent_in
        u = torch.addmm(bias, x, weight)
        return torch.view_as_complex(u.view(x.shape[0], self.lam.shape[0], 2))

    def read(self, h: Tensor, x: Tensor) -> Tensor:
        """Return the block's output (rows, d) for states h (rows, c), which hold x already."""
        bias, weight = self.recurrent_out
        y = torch.addmm(bias, torch.view_as_real(h).flatten(1), weight).add_(x)
        x = F.layer_norm(y, y.shape[1:], *self.recurrent_norm)
        bias, weight = self.inner
        inner = F.gelu(torch.addmm(bias, x, weight))
        bias, weight = self.outer
        y = torch.addmm(bias, inner, weight).add_(x)
        return F.layer_norm(y, y.shape[1:], *self.norm)


class ServingModel:
    """Frozen weights on one device; every method is pure and may be called from any thread.

    Results are inference tensors: use and copy them anywhere, write to them in inference mode only.

    Rows of different batch sizes go through different matrix kernels, so the same user's numbers
    may differ in their last bits between batches; they never drift apart, because |lambda| < 1.

    Args:
        recommender: the trained model; its weights are copied.
        device: where states and outputs live. Indices may come from anywhere; from the CPU they
            are checked without waiting for the device.
    """

    def __init__(self, recommender: Recommender, device: torch.device | str = "cpu") -> None:
        self.config = recommender.config
        self.device = torch.device(device)
        with torch.inference_mode():
            self._weight, self._bias = (
                parameter.detach().to(self.device, torch.float32, copy=True)
                for parameter in (recommender.item_embedding, recommender.item_bias)
            )
            norm = recommender.embedding_norm
            self._embedding = F.layer_norm(
                recommender.item_embedding, norm.normalized_shape, norm.weight, norm.bias
            ).to(self.device, torch.float32)
            self._blocks = tuple(
                _FoldedBlock.fold(block, self.device)
                for block in recommender.blocks
                if isinstance(block, Block)
            )
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
            lengths: how many of them each user has, at least 1, their sum e. If all are 1, the cost
                is that of one step; otherwise there are as many small steps as the longest has.

        Returns:
            Each user's state after the last item, and the output after every item.

        Raises:
            ValueError: a length is below 1, the lengths do not add up to e, an item is outside the
                vocabulary, or the state's shape is not that of u users.
        """
        self._check(state, items, lengths)
        items = items.to(self.device)
        if lengths.numel() == items.numel():
            return self._step(state, items)
        return self._scan(state, items, PackedLayout.from_lengths(lengths, self.device))

    def _step(self, state: Tensor, items: Tensor) -> tuple[Tensor, Tensor]:
        new_state = torch.empty_like(state)
        x = F.embedding(items, self._embedding)
        for index, block in enumerate(self._blocks):
            h = new_state[:, index]
            torch.addcmul(block.inputs(x), block.lam, state[:, index], out=h)
            x = block.read(h, x)
        return new_state, x

    def _scan(self, state: Tensor, items: Tensor, layout: PackedLayout) -> tuple[Tensor, Tensor]:
        """Advance time-major, a bounded number of rows at a time."""
        new_state = state[layout.order]
        items = items[layout.to_time_major]
        outputs = []
        for first_row, batch_sizes in _stretches(layout.batch_sizes):
            x = F.embedding(items[first_row : first_row + sum(batch_sizes)], self._embedding)
            for index, block in enumerate(self._blocks):
                u = block.inputs(x)
                carry = new_state[: batch_sizes[0], index]
                steps = torch.split(u, batch_sizes)
                for rows, now, later in zip(steps, batch_sizes, [*batch_sizes[1:], 0], strict=True):
                    rows.addcmul_(block.lam, carry[:now])
                    if later < now:
                        new_state[later:now, index] = rows[later:]
                    carry = rows
                x = block.read(u, x)
            outputs.append(x)
        return new_state[layout.rank], torch.cat(outputs)[layout.to_packed]

    @torch.inference_mode()
    def readout(self, state: UserStates, items: UserItems) -> UserOutputs:
        """Return each user's output after the last item, from a state that already holds it.

        Raises:
            ValueError: an item is outside the vocabulary, or the state's shape is not that of u
                users.
        """
        self._check(state, items, torch.ones_like(items))
        x = F.embedding(items.to(self.device), self._embedding)
        for index, block in enumerate(self._blocks):
            x = block.read(state[:, index], x)
        return x

    def cold_start(self) -> Output:
        """Return the output for a user without history: the pad token's, from the zero state."""
        return self._cold_start

    @torch.inference_mode()
    def scores(self, outputs: UserOutputs) -> UserScores:
        """Return the score of every item as the next one; column 0 is the pad token."""
        return torch.addmm(self._bias, outputs, self._weight.t())

    @torch.inference_mode()
    def top_k(
        self,
        outputs: UserOutputs,
        k: int,
        excluded: ExcludedItems | None = None,
        unavailable: VocabularyFlags | None = None,
    ) -> tuple[TopScores, TopItems]:
        """Return each user's k best items: `models.top_k.top_k` with this model's weights."""
        excluded, unavailable = (
            None if mask is None else mask.to(self.device) for mask in (excluded, unavailable)
        )
        return top_k(outputs, self._weight, self._bias, k, excluded, unavailable)

    def _check(self, state: Tensor, items: Tensor, lengths: Tensor) -> None:
        users = lengths.numel()
        shape = (users, self.config.n_blocks, self.config.state_size)
        if tuple(state.shape) != shape:
            msg = f"the state of {users} users must have shape {shape}, got {tuple(state.shape)}"
            raise ValueError(msg)
        if users and int(lengths.min()) < 1:
            msg = f"each user must have at least 1 item, got a length of {int(lengths.min())}"
            raise ValueError(msg)
        if int(lengths.sum()) != items.numel():
            msg = f"lengths must add up to the {items.numel()} items, got {int(lengths.sum())}"
            raise ValueError(msg)
        if items.numel():
            least, most = (int(bound) for bound in torch.aminmax(items))
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
