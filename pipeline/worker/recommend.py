"""A micro-batch, from records to moved states and recommendations.

Runs in the compute thread. In order: change over to a waiting release, decode, find the rows, drop
what was applied before, rebuild states that other weights made, move every state over its user's
new items (one scan for all), rank, write the heads. The records decide everything: applied again
from any earlier row they give the same states.
"""

import logging
import time
from collections import Counter, deque
from collections.abc import Collection, Mapping, Sequence
from functools import partial

import numpy as np
import numpy.typing as npt
import torch

from pipeline.cluster.topics import changelog_name
from pipeline.engine.chunks import Chunk
from pipeline.engine.processor import PartitionResult, Snapshot
from pipeline.events import EventDecoder
from pipeline.metrics import SOURCES, Metrics
from pipeline.settings import Settings
from pipeline.worker.bad_rows import end_by_damaged_row, require_numbers
from pipeline.worker.batch import MicroBatch, decode_chunks
from pipeline.worker.catalogue import Catalogue
from pipeline.worker.histories import Histories, is_in_list, last_of_each, repeats_recent
from pipeline.worker.hot_rows import HotRows, SnapshotToken
from pipeline.worker.outputs import Outputs
from pipeline.worker.popularity import Popularity
from pipeline.worker.ranking import Applied, Ranked, Ranker
from pipeline.worker.served_model import ModelHolder, ServedModel
from pipeline.worker.settings_watch import SettingsWatch
from pipeline.worker.users import Users
from state.row import EVENT_IDS, RowLayout, append_items, ring_items
from state.store import StateStore

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]
Hashes = npt.NDArray[np.uint64]


class RecommendationProcessor:
    """Implements `pipeline.engine.processor.Processor` with a model.

    Args:
        settings: All settings.
        store: Keeps the rows.
        holder: The model that serves and the one that will.
        catalogue: What may not be recommended now.
        users: Who is forgotten, and whose items are blocked.
        metrics: Counts what happens.
        device: Where hidden states live.
    """

    def __init__(
        self,
        settings: Settings,
        store: StateStore,
        holder: ModelHolder,
        catalogue: Catalogue,
        users: Users,
        metrics: Metrics,
        device: torch.device,
    ) -> None:
        recommend = settings.recommend
        self._source = settings.topics.interactions
        self._changelog = changelog_name(settings.worker.app_id)
        self._holder = holder
        self._users = users
        self._metrics = metrics
        self._decoder = EventDecoder(settings.fields)
        self._watch = SettingsWatch(self._source)
        self._k = recommend.top_k
        self._transactional = recommend.transactional
        self._exclude_seen = recommend.exclude_seen
        self._prequential = recommend.prequential
        on_damaged = partial(end_by_damaged_row, store, self._changelog)
        layout = RowLayout(ring=settings.ring, recommended=self._k, blocks=1, channels=1)
        self._hot = HotRows(layout, settings.worker.hot_rows, device, store, on_damaged)
        self._ranker = Ranker(self._hot, catalogue, self._k)
        self._outputs = Outputs(self._hot, users, transactional=self._transactional)
        self._popularity = Popularity()
        self._model: ServedModel | None = None
        if holder.current is not None:
            self._serve(holder.current)

    # --- what the engine calls

    def process(self, chunks: Sequence[tuple[int, Chunk]]) -> list[PartitionResult]:
        """Apply the records and rank for every user they name."""
        with torch.inference_mode():
            return self._process(chunks)

    def _process(self, chunks: Sequence[tuple[int, Chunk]]) -> list[PartitionResult]:
        self._take_up()
        model, clock = self._model, [time.perf_counter()]
        index_of = model.index_of if model else {}
        batch = decode_chunks(
            chunks, self._decoder, self._source, index_of, self._users.forget_before_ms
        )
        clock.append(time.perf_counter())
        without_row = {} if self._transactional else self._outputs.look_behind(batch)
        slots, applied = self._load(batch)
        is_answered = np.ones(len(slots), np.bool_)
        if self._transactional:  # the row proves that the answer to a repeat was committed with it
            is_answered[:] = False
            is_answered[applied.user] = True
        if model is not None:
            self._rebuild(model, slots[is_answered])
        clock.append(time.perf_counter())
        blocked = self._users.blocked(batch.users)
        ranked = self._advance_and_rank(slots, applied, is_answered, blocked)
        clock.append(time.perf_counter())
        if model is not None:
            require_numbers(self._hot, self._changelog, model.version, batch, slots, ranked)
        version = model.version if model else 0
        results = self._outputs.results(batch, slots, ranked, is_answered, without_row, version)
        clock.append(time.perf_counter())
        self._count(batch, applied, ranked, is_answered)
        self._metrics.observe_stages(("decode", "load", "rank", "encode"), np.diff(clock))
        return results

    def refresh(self, owned: Collection[int]) -> Mapping[int, int]:
        """Go over to a release that waits; erase the rows of users who are to be forgotten."""
        with torch.inference_mode():
            self._take_up()
            erased = self._users.erase_rows(self._hot, owned)
        self._metrics.users_forgotten.inc(sum(erased.values()))
        return {partition: self._hot.moved_rows(partition) for partition in erased}

    def _take_up(self) -> None:
        """Take up what other threads have: releases and commands about users."""
        self._users.take_up()
        model = self._holder.take_next()
        if model is None:
            return
        try:
            self._serve(model)
        except MemoryError as error:  # nothing has changed: the old one can go on
            self._holder.current = self._model
            self._metrics.model_swaps["rejected"].inc()
            self._metrics.rejected_version.set(model.version)
            said = " ".join(str(error).split())
            logger.error(
                "release %d at %s: no memory for %d rows of %d bytes (%s); the model that serves "
                "stays",
                model.version,
                model.release.path,
                len(self._hot.heads),
                model.layout.row_bytes,
                said,
            )
        else:
            logger.info("release %d serves", model.version)

    def snapshot(self, partition: int) -> Snapshot:
        """Return what moved in the partition since the last snapshot."""
        rows, token = self._hot.snapshot(partition)
        return Snapshot(rows=rows, token=token)

    def settled(self, partition: int, snapshot: Snapshot) -> None:
        """Note that changelog and store hold the snapshot's rows."""
        assert isinstance(snapshot.token, SnapshotToken)
        self._hot.settled(partition, snapshot.token)

    def forget(self, partition: int) -> None:
        """Drop everything held of a partition."""
        self._hot.forget(partition)
        self._users.leave(partition)

    def newer(self, rows: Sequence[bytes], than: Sequence[bytes]) -> list[bool]:
        """Tell which rows are intact and newer than the other ones, or those are damaged."""
        layout = self._hot.layout
        ours, others = layout.decode(rows), layout.decode(than)
        more = ours.heads["offset"] > others.heads["offset"]
        keep: list[bool] = (~ours.damaged & (others.damaged | more)).tolist()
        return keep

    def sent(self, results: Sequence[PartitionResult], now_s: float) -> None:
        """Note that the outputs of these results left. May be called from any thread."""
        record_ms = np.concatenate([result.record_ms for result in results])
        self._metrics.event_to_recommendation.observe_many(now_s - record_ms / 1000)

    # --- stages

    def _serve(self, model: ServedModel) -> None:
        """Go over to a release; the states follow when they are used."""
        if model.layout != self._hot.layout:
            self._hot.relayout(model.layout)
        self._model = model
        self._popularity.adopt(model)
        self._metrics.model_version.set(model.version)
        self._watch.see_release(model.release)

    def _load(self, batch: MicroBatch) -> tuple[Ints, Applied]:
        """Find the users' rows, and the events that they lack."""
        hot = self._hot
        hits, misses = hot.hits, hot.misses
        hot.tick()
        found = [hot.find(partition, keys) for partition, keys in batch.users.items()]
        slots = np.concatenate(found) if found else np.empty(0, np.int64)
        self._metrics.count_hot_rows(hot.hits - hits, hot.misses - misses, len(hot))
        if self._users.forget_before_ms:
            self._erase(batch, slots)
        fresh = batch.offset > hot.heads["offset"][slots][batch.user]
        if batch.event_id.any():
            self._drop_repeats(batch, slots, fresh)
        self._keep_head_true(batch, slots, fresh)
        applied = Applied(
            user=batch.user[fresh],
            item=batch.item[fresh],
            item_hash=batch.item_hash[fresh],
            item_ids=[batch.item_ids[i] for i in np.flatnonzero(fresh).tolist()],
            timestamp_ms=batch.timestamp_ms[fresh],
            offset=batch.offset[fresh],
        )
        return slots, applied

    def _erase(self, batch: MicroBatch, slots: Ints) -> None:
        """Have no row hold what is to be forgotten, before anything is added to it."""
        heads, forget_of = self._hot.heads, self._users.forget_before_ms.get
        keys = [key for keys in batch.users.values() for key in keys]
        before_ms = np.array([forget_of(key, 0) for key in keys], np.int64)
        stale = heads["forgotten_before_ms"][slots] < before_ms
        if not stale.any():
            return
        had_events = heads["event_count"][slots[stale]] > 0
        self._hot.erase(slots[stale], before_ms[stale])
        self._metrics.users_forgotten.inc(int(np.count_nonzero(had_events)))

    def _keep_head_true(self, batch: MicroBatch, slots: Ints, fresh: npt.NDArray[np.bool_]) -> None:
        """Have rows claim no more than their new events keep to.

        A worker may not have heard yet what the row's owner before knew when it began the row.
        """
        forgotten_before_ms = self._hot.heads["forgotten_before_ms"]
        if forgotten_before_ms[slots].any():
            at = slots[batch.user[fresh]]
            np.minimum.at(forgotten_before_ms, at, batch.earliest_ms[fresh])

    def _drop_repeats(self, batch: MicroBatch, slots: Ints, fresh: npt.NDArray[np.bool_]) -> None:
        """Clear `fresh` where an event's id is among its user's last ones; note the new ids."""
        event_ids = self._hot.heads["event_ids"]
        recent: dict[int, deque[int]] = {}
        for event in np.flatnonzero(fresh & (batch.event_id != 0)).tolist():
            slot = int(slots[batch.user[event]])
            if slot not in recent:
                recent[slot] = deque(filter(None, event_ids[slot].tolist()), maxlen=EVENT_IDS)
            event_id = int(batch.event_id[event])
            if event_id in recent[slot]:
                fresh[event] = False
            else:
                recent[slot].append(event_id)
        for slot, ids in recent.items():
            event_ids[slot, : len(ids)] = list(ids)

    def _rebuild(self, model: ServedModel, slots: Ints) -> None:
        """Compute anew, from the remembered items, every state that other weights made."""
        heads, hot = self._hot.heads, self._hot
        stale = slots[heads["weights_id"][slots] != model.weights_id]
        if not len(stale):
            return
        remembered, lengths = ring_items(heads[stale])
        item = model.release.vocabulary.indices_of_hashes(remembered)
        known = item > 0
        counts = known.sum(axis=1)
        warm = np.flatnonzero(counts)
        hot.hidden.index_fill_(0, hot.index(stale), 0)
        if len(warm):
            hot.hidden[hot.index(stale[warm])], _ = model.serving.advance(
                model.serving.init_state(len(warm)),
                torch.from_numpy(item[known]),
                torch.from_numpy(counts[warm]),
            )
        newest = known.shape[1] - 1 - known[:, ::-1].argmax(axis=1)
        heads["last_item"][stale] = np.where(counts, remembered[np.arange(len(stale)), newest], 0)
        heads["started_at"][stale] = heads["event_count"][stale] - lengths
        heads["weights_id"][stale] = model.weights_id
        heads["model_version"][stale] = model.version
        self._metrics.states_rebuilt.inc(int(np.count_nonzero(lengths)))

    def _advance_and_rank(
        self,
        slots: Ints,
        applied: Applied,
        is_answered: npt.NDArray[np.bool_],
        blocked: Mapping[int, Hashes],
    ) -> Ranked:
        """Move states and heads, measure the lists of before, make the new ones.

        The row of who is not answered stays as it is: it holds the list that he was sent last.
        """
        heads, model, histories = self._hot.heads, self._model, None
        measure = self._prequential and model is not None and len(applied.user) > 0
        if measure or self._exclude_seen:
            remembered, lengths = ring_items(heads[slots])
            histories = Histories(remembered, lengths, applied.user, applied.item_hash)
        if measure and histories is not None:
            self._measure_baselines(applied, histories)
        self._popularity.add(applied.item, applied.item_hash, applied.item_ids)
        seen = histories if self._exclude_seen else None
        if model is None:
            ranked = self._ranker.by_popularity(self._popularity, len(slots), seen, blocked)
        else:
            ranked = self._ranker.by_model(
                model, slots, applied, seen, blocked, every_event=measure
            )
        if ranked.before is not None:
            hits = is_in_list(ranked.before, applied.item_hash)
            self._metrics.prequential_hits["model"].inc(int(hits.sum()))
        self._move_heads(slots, applied)
        answered = slots[is_answered]
        heads["recommended"][answered] = ranked.item_hash[is_answered]
        if model is not None:
            stale = int(np.count_nonzero(heads["weights_id"][answered] != model.weights_id))
            self._metrics.stale_states_served.inc(stale)
        return ranked

    def _move_heads(self, slots: Ints, applied: Applied) -> None:
        if not len(applied.user):
            return
        heads = self._hot.heads
        append_items(heads, slots[applied.user], applied.item_hash)
        last = last_of_each(applied.user)
        moved = slots[applied.user[last]]
        late = applied.timestamp_ms[last] < heads["timestamp_ms"][moved]
        self._metrics.late_events.inc(int(np.count_nonzero(late)))
        if self._model is None:
            self._leave_behind(moved[heads["weights_id"][moved] != 0])
        heads["offset"][moved] = applied.offset[last]
        heads["timestamp_ms"][moved] = applied.timestamp_ms[last]

    def _leave_behind(self, slots: Ints) -> None:
        """Drop hidden states that are not moved with their items; a release rebuilds them."""
        heads, hot = self._hot.heads, self._hot
        hot.hidden.index_fill_(0, hot.index(slots), 0)
        for name in ("weights_id", "model_version", "last_item"):
            heads[name][slots] = 0

    def _measure_baselines(self, applied: Applied, histories: Histories) -> None:
        """Count what popularity and repeat-last would have hit, knowing what the model knew."""
        metrics, everything = self._metrics, np.arange(len(applied.user))
        window = histories.before(everything, self._hot.layout.ring)
        repeats = repeats_recent(window, applied.item_hash, self._k)
        popular = is_in_list(self._popularity.top_hashes(self._k)[None], applied.item_hash)
        metrics.prequential_events.inc(len(everything))
        metrics.prequential_hits["repeat_last"].inc(int(repeats.sum()))
        metrics.prequential_hits["popularity"].inc(int(popular.sum()))

    def _count(
        self,
        batch: MicroBatch,
        applied: Applied,
        ranked: Ranked,
        is_answered: npt.NDArray[np.bool_],
    ) -> None:
        metrics = self._metrics
        dead = Counter(record.reason for records in batch.dead.values() for record in records)
        metrics.count_events(
            applied=len(applied.user),
            duplicate=len(batch.user) - len(applied.user),
            skipped=batch.skipped,
            forgotten=batch.forgotten,
            unknown_item=int(np.count_nonzero(applied.item == 0)),
            dead=dead,
        )
        self._watch.see(batch, dead)
        by_source = np.bincount(ranked.source[is_answered], minlength=3).tolist()
        metrics.count_recommendations(
            dict(zip(SOURCES, by_source, strict=True)),
            short=int(np.count_nonzero(ranked.items[is_answered, -1] == 0)),  # no last item
        )
        if len(applied.timestamp_ms):
            metrics.last_event_timestamp.set(int(applied.timestamp_ms.max()) / 1000)
