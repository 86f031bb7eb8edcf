"""Hidden states and lists computed anew: whole histories through the training form.

Made to judge what was served, so it computes with `models.recommender` and `models.scan`, as
training does, and not with the folded weights and single steps of `models.serving`. In float32, as
they do: rounding an eigenvalue close to 1 to float32 moves a long history's state further than all
the rounding of its steps, and is a property of the weights, not a fault of serving.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor
from torch.nn import functional as F

from models.lru import Block
from models.release import Release, load_recommender
from models.scan import PackedLayout, scan_time_major

MAX_ROWS = 16_384
"""Events that go through the blocks at once: about 16 MiB for each widest activation."""

MAX_SCORES = 2**22
"""Scores that are held at once."""

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, kw_only=True, eq=False)
class Stretch:
    """Items to scan from the zero state.

    Attributes:
        items: int64 (t,), indices into the vocabulary, oldest first; t may be 0.
        ends: int64 (w,), after how many of them an output is wanted, in 0..t, in any order.
    """

    items: Ints
    ends: Ints


@dataclass(frozen=True, kw_only=True, eq=False)
class Scanned:
    """What a scan gave.

    Attributes:
        hidden: complex64 (blocks, channels), the state after the last item.
        outputs: float32 (w, d), at the wanted places; the cold start where nothing came before.
    """

    hidden: npt.NDArray[np.complex64]
    outputs: Tensor


class Rescan:
    """A release to compute with."""

    def __init__(self, release: Release) -> None:
        self.release = release
        self._model = load_recommender(release)
        self._blocks = [block for block in self._model.blocks if isinstance(block, Block)]
        with torch.inference_mode():
            pad = torch.zeros(1, dtype=torch.int64)
            self._cold_start: Tensor = self._model(pad, torch.ones_like(pad))

    @torch.inference_mode()
    def scan(self, stretches: Sequence[Stretch]) -> Iterator[list[tuple[int, Scanned]]]:
        """Scan every stretch; yields batches of (index, result), not in the order given.

        Stretches of similar length go together; one that is longer than `MAX_ROWS` goes alone,
        piece after piece with the states carried over, so that memory does not grow with it.
        """
        order = sorted(range(len(stretches)), key=lambda i: len(stretches[i].items))
        batch: list[int] = []
        rows = 0
        for i in order:
            if batch and rows + len(stretches[i].items) > MAX_ROWS:
                yield self._scan_batch(stretches, batch)
                batch, rows = [], 0
            batch.append(i)
            rows += len(stretches[i].items)
        if batch:
            yield self._scan_batch(stretches, batch)

    def _scan_batch(
        self, stretches: Sequence[Stretch], batch: list[int]
    ) -> list[tuple[int, Scanned]]:
        parts = [stretches[i] for i in batch]
        warm = [n for n, part in enumerate(parts) if len(part.items)]
        config = self.release.config
        shape = (len(parts), config.n_blocks, config.state_size)
        hidden = torch.zeros(shape, dtype=torch.complex64)
        wanted = [self._cold_start.expand(len(part.ends), -1) for part in parts]
        if warm:
            items = np.concatenate([parts[n].items for n in warm])
            lengths = np.array([len(parts[n].items) for n in warm])
            first = np.cumsum(lengths) - lengths
            ends = [torch.from_numpy(parts[n].ends) for n in warm]
            places = [end + int(start) - 1 for end, start in zip(ends, first, strict=True)]
            last, outputs = self._run(torch.from_numpy(items), torch.from_numpy(lengths), places)
            hidden[warm] = last
            for n, end, output in zip(warm, ends, outputs, strict=True):
                wanted[n] = torch.where((end > 0)[:, None], output, self._cold_start)
        states = hidden.numpy()
        return [(i, Scanned(hidden=states[n], outputs=wanted[n])) for n, i in enumerate(batch)]

    def _run(
        self, items: Tensor, lengths: Tensor, places: list[Tensor]
    ) -> tuple[Tensor, list[Tensor]]:
        """Scan packed items; the last states (s, blocks, c) and the outputs at packed places."""
        if len(lengths) > 1 or len(items) <= MAX_ROWS:
            outputs, last = self._piece(items, PackedLayout.from_lengths(lengths), None)
            return last, [outputs[place.clamp(min=0)] for place in places]
        (place,) = places
        found = self._cold_start.repeat(len(place), 1)
        carry = None
        for first in range(0, len(items), MAX_ROWS):
            piece = items[first : first + MAX_ROWS]
            layout = PackedLayout.from_lengths(torch.tensor([len(piece)]))
            outputs, carry = self._piece(piece, layout, carry)
            inside = (place >= first) & (place < first + len(piece))
            found[inside] = outputs[place[inside] - first]
        assert carry is not None  # there are more than MAX_ROWS items
        return carry, [found]

    def _piece(
        self, items: Tensor, layout: PackedLayout, carry: Tensor | None
    ) -> tuple[Tensor, Tensor]:
        """Return packed outputs (t, d) and last states (s, blocks, c) of packed items.

        The blocks' own `forward`, but for the states, which it neither takes nor gives.
        """
        x = self._model.embedding_norm(
            F.embedding(items[layout.to_time_major], self._model.item_embedding)
        )
        last = []
        for index, block in enumerate(self._blocks):
            lru = block.lru
            u = F.linear(x, *lru.input_projection())
            h = scan_time_major(
                torch.view_as_complex(u.view(len(u), -1, 2)),
                lru.eigenvalues(),
                None if carry is None else carry[layout.order, index],
                layout,
            )
            last.append(h[layout.last_rows][layout.rank])
            y = F.linear(torch.view_as_real(h).flatten(1), lru.out_weight, lru.out_bias)
            x = block.feed_forward(lru.norm(y + x))
        return x[layout.to_packed], torch.stack(last, 1)

    @torch.inference_mode()
    def compare_lists(
        self,
        outputs: Tensor,
        items: Ints,
        scores: npt.NDArray[np.float64],
        left_out: Ints,
        barred: Ints,
    ) -> tuple[npt.NDArray[np.float64], npt.NDArray[np.float64]]:
        """Hold lists against the scores of every item.

        Args:
            outputs: float32 (m, d).
            items: int64 (m, k), the lists; 0 where there is none.
            scores: (m, k), as the lists have them.
            left_out: int64 (m, n), items that may be missing from each list; 0 for none.
            barred: int64 (b,), items that may be missing from every list.

        Returns:
            Two arrays (m,): how far the best item that is not in a list lies above the worst that
            is (negative where the list is right), and the largest error of a list's scores.
        """
        above, errors = [np.empty(0)], [np.empty(0)]
        weight = self._model.item_embedding
        step = max(1, MAX_SCORES // len(weight))
        for at in range(0, len(items), step):
            index = torch.from_numpy(items[at : at + step])
            table = torch.addmm(self._model.item_bias, outputs[at : at + step], weight.t())
            own = table.gather(1, index)
            is_item = index > 0
            error = (own - torch.from_numpy(scores[at : at + step])).abs()
            table[:, 0] = -torch.inf
            table[:, torch.from_numpy(barred)] = -torch.inf
            table.scatter_(1, index, -torch.inf)
            table.scatter_(1, torch.from_numpy(left_out[at : at + step]), -torch.inf)
            worst = own.masked_fill(~is_item, torch.inf).amin(1)
            above.append((table.amax(1) - worst).double().numpy())
            errors.append(error.masked_fill(~is_item, 0).amax(1).double().numpy())
        return np.concatenate(above), np.concatenate(errors)
