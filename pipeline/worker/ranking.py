"""From states and new events to ranked lists, for all users of a micro-batch at once."""

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch
from torch import Tensor

from models.serving.graphs import StepGraphs, capture_cuda
from models.transfers import to_device, to_host
from pipeline.worker.catalogue import Catalogue
from pipeline.worker.histories import Histories, last_of_each
from pipeline.worker.hot_rows import HotRows
from pipeline.worker.popularity import Popularity
from pipeline.worker.served_model import ServedModel

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]

MODEL, COLD_START, FALLBACK = range(3)
"""Indices into `pipeline.metrics.SOURCES`."""


@dataclass(slots=True)
class Applied:
    """The events of a batch that change something; all arrays (e,).

    Attributes:
        user: int64, non-decreasing; a user's events come oldest first.
        item: int64, index in the vocabulary; 0 where the release does not know the item.
        item_hash: uint64, never 0.
        item_ids: The ids themselves.
        timestamp_ms: int64, of the event.
        offset: int64, of the record.
    """

    user: Ints
    item: Ints
    item_hash: Hashes
    item_ids: list[str]
    timestamp_ms: Ints
    offset: Ints


@dataclass(slots=True)
class Ranked:
    """The lists of the users of a batch.

    Attributes:
        items: int64 (u, k), indices into `hashes` and `item_json`; 0 where nothing was left to
            recommend.
        scores: float32 (u, k), falling; meaningless where the item is 0.
        source: int64 (u,), index into `pipeline.metrics.SOURCES`.
        hashes: uint64, by index; 0 at 0.
        item_json: Beginning of each item in JSON, by index.
        before: uint64 (e, k), the list in force before each applied event, where it was asked for.
    """

    items: Ints
    scores: npt.NDArray[np.float32]
    source: Ints
    hashes: Hashes
    item_json: list[str]
    before: Hashes | None = None

    @property
    def item_hash(self) -> Hashes:
        """uint64 (u, k): the recommended items."""
        return self.hashes[self.items]


class Ranker:
    """Advances states and ranks.

    Args:
        hot: The rows in use.
        catalogue: What may not be recommended now.
        k: Items in a list.
    """

    def __init__(self, hot: HotRows, catalogue: Catalogue, k: int) -> None:
        self._hot = hot
        self._catalogue = catalogue
        self._k = k
        self._cold_start: tuple[int, Tensor | None, Hashes] | None = None
        self._graphs = StepGraphs(capture_cuda) if hot.hidden.is_cuda else None

    def by_model(
        self,
        model: ServedModel,
        slots: Ints,
        applied: Applied,
        seen: Histories | None,
        blocked: Mapping[int, Hashes],
        *,
        every_event: bool,
    ) -> Ranked:
        """Move the states over the events that the release knows, and rank for every user.

        Args:
            model: The release that serves; every state here was made by it.
            slots: int64 (u,), the users' rows.
            applied: Their new events.
            seen: What they did, where a list is to leave out what its row remembers.
            blocked: By user, uint64 (n,), items to leave out of the user's lists; others have none.
            every_event: Rank after every event rather than only after the last of each user, to
                know the list that was in force before each (prequential measurement).
        """
        heads, known = self._hot.heads, applied.item.nonzero()[0]
        user, item = applied.user[known], applied.item[known]
        last = last_of_each(user)
        earlier = self._earlier_lists(model, slots) if every_event else None
        vectors = self._advance(model, slots, user, item, last)
        scored = np.arange(len(known)) if every_event else last
        if not every_event and len(last) < len(known):
            vectors = vectors[self._tensor(last)]
        is_resting = np.ones(len(slots), np.bool_)
        is_resting[user[last]] = False
        resting = is_resting.nonzero()[0]  # without a new item that the release knows
        last_item = model.release.vocabulary.indices_of_hashes(heads["last_item"][slots[resting]])
        if len(resting):
            vectors = torch.cat([vectors, self._read(model, slots[resting], last_item)])
        columns = []
        if seen is not None:
            size = heads["ring"].shape[1]
            # What is remembered moves on with items that the release does not know, too.
            until = np.minimum(
                np.append(known[1:], len(applied.user)),
                np.searchsorted(applied.user, user, side="right"),
            )
            windows = [seen.after(until[scored] - 1, size), seen.at_end(resting, size)]
            columns.append(model.release.vocabulary.indices_of_hashes(np.concatenate(windows)))
        if blocked:
            columns.append(_blocked_of_each(model, np.append(user[scored], resting), blocked))
        excluded = torch.from_numpy(np.concatenate(columns, axis=1)) if columns else None
        scores, items = model.serving.top_k(
            vectors, self._k, excluded, self._catalogue.unavailable(model)
        )
        lists, list_scores = to_host(items, scores)
        list_of_user = np.empty(len(slots), np.int64)
        list_of_user[user[last]] = last if every_event else np.arange(len(last))
        list_of_user[resting] = len(scored) + np.arange(len(resting))
        source = np.zeros(len(slots), np.int64)
        source[resting[last_item == 0]] = COLD_START
        ranked = Ranked(
            lists[list_of_user],
            list_scores[list_of_user],
            source,
            model.hashes,
            model.item_json,
        )
        if earlier is not None:
            ranked.before = _lists_before(applied, earlier, model.hashes[lists[: len(known)]])
        return ranked

    def by_popularity(
        self,
        popularity: Popularity,
        n_users: int,
        seen: Histories | None,
        blocked: Mapping[int, Hashes],
    ) -> Ranked:
        """Rank for every user by what was popular so far; the answer while there is no release."""
        k, size = self._k, self._hot.heads["ring"].shape[1]
        left_out: dict[int, Hashes] = dict(blocked)
        if seen is not None:
            nothing = np.empty(0, np.uint64)
            for i, window in enumerate(seen.at_end(np.arange(n_users), size)):
                left_out[i] = np.append(blocked.get(i, nothing), window)
        hashes, item_json, counts = popularity.top_items(
            k + max(map(len, left_out.values()), default=0), self._catalogue.unavailable_hashes()
        )
        candidates = np.arange(1, len(hashes))
        items = np.zeros((n_users, k), np.int64)
        items[:, : len(candidates)] = candidates[:k]
        for i, out in left_out.items():
            first = candidates[: k + len(out)]
            left = first[~np.isin(hashes[first], out)][:k]
            items[i] = 0
            items[i, : len(left)] = left
        scores = np.array(counts, np.float32)[items]
        source = np.full(n_users, FALLBACK)
        return Ranked(items, scores, source, hashes, item_json)

    def _advance(
        self, model: ServedModel, slots: Ints, user: Ints, item: Ints, last: Ints
    ) -> Tensor:
        """Move the states of the users over their items; the outputs (e, d) after each."""
        if not len(user):
            return model.cold_start[None][:0]
        at, items = slots[user[last]], torch.from_numpy(item)
        outputs = None
        if self._graphs is not None:
            where = torch.from_numpy(at)
            outputs = self._graphs.step(model.serving, self._hot.hidden, where, items)
        if outputs is None:
            index = self._hot.index(at)
            counts = np.diff(last, prepend=-1)
            state, outputs = model.serving.advance(
                self._hot.hidden[index], items, torch.from_numpy(counts)
            )
            self._hot.hidden[index] = state
        self._hot.heads["last_item"][at] = model.hashes[item[last]]
        return outputs

    def _read(self, model: ServedModel, slots: Ints, last_item: Ints) -> Tensor:
        """Return the outputs (n, d) of states at rest; the cold start where nothing is known."""
        vectors = model.cold_start.repeat(len(slots), 1)
        warm = np.flatnonzero(last_item)
        if len(warm):
            states = self._hot.hidden[self._hot.index(slots[warm])]
            read = model.serving.readout(states, torch.from_numpy(last_item[warm]))
            vectors[self._tensor(warm)] = read
        return vectors

    def _earlier_lists(self, model: ServedModel, slots: Ints) -> Hashes:
        """Return the lists (u, k) last made; the cold-start list for a user who never had one."""
        lists = self._hot.heads["recommended"][slots]
        is_new = ~lists.any(axis=1)
        if is_new.any():
            lists[is_new] = self._cold_start_list(model)
        return lists

    def _cold_start_list(self, model: ServedModel) -> Hashes:
        """Return the list (k,) of a user without history, for this release and catalogue."""
        unavailable = self._catalogue.unavailable(model)
        kept = self._cold_start
        if kept is None or kept[0] != model.weights_id or kept[1] is not unavailable:
            _, items = model.serving.top_k(model.cold_start[None], self._k, None, unavailable)
            [best] = to_host(items[0])
            hashes = model.hashes[best]
            self._cold_start = kept = (model.weights_id, unavailable, hashes)
        return kept[2]

    def _tensor(self, array: npt.NDArray[np.int64]) -> Tensor:
        return to_device(torch.from_numpy(np.ascontiguousarray(array)), self._hot.hidden.device)


def _blocked_of_each(model: ServedModel, user: Ints, blocked: Mapping[int, Hashes]) -> Ints:
    """Return the blocked items (n, most) of the user of each list, as indices, 0 for none."""
    index = model.release.vocabulary.indices_of_hashes(np.concatenate([*blocked.values()]))
    ends = np.cumsum([len(items) for items in blocked.values()])
    known = [part[part > 0] for part in np.split(index, ends[:-1])]
    of_user = np.zeros(1 + max(int(user.max(initial=0)), *blocked), np.int64)  # 0: has none
    of_user[[*blocked]] = np.arange(1, len(blocked) + 1)
    table = np.zeros((len(blocked) + 1, max(map(len, known))), np.int64)
    for row, items in zip(table[1:], known, strict=True):
        row[: len(items)] = items
    return table[of_user[user]]


def _lists_before(applied: Applied, earlier: Hashes, after_known: Hashes) -> Hashes:
    """Return the list (e, k) in force before each event.

    Args:
        applied: The events.
        earlier: uint64 (u, k), each user's list from before the batch.
        after_known: uint64 (n, k), the list after each event whose item the release knows.
    """
    is_known = applied.item > 0
    known_so_far: Ints = np.cumsum(is_known) - is_known  # of all users
    first = np.searchsorted(applied.user, applied.user)  # each event's user's first event
    before = earlier[applied.user]
    moved: npt.NDArray[np.bool_] = (
        known_so_far > known_so_far[first]
    )  # the user's list changed within the batch
    before[moved] = after_known[known_so_far[moved] - 1]
    return before
