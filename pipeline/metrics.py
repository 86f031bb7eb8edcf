"""Every metric of ours; `pipeline.metrics_server` shows them.

Metrics live on a registry that is passed in, are attributes of one class per process kind, and have
their label values made at the start, so that zero is visible. Labels are closed sets, never a user
or an item. Timestamps are exported as timestamps; ages are for the query.
"""

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram

from pipeline.errors import DeadReason
from pipeline.metric_kinds import ArrayHistogram, StoreCollector, by_label, register_build
from state.store import StoreStats

STAGES = ("decode", "load", "rank", "encode")
EVENT_RESULTS = ("applied", "unknown_item", "duplicate", "skipped", "forgotten", "dead")
SOURCES = ("model", "cold_start", "fallback")
METHODS = ("model", "popularity", "repeat_last")

# A stage of a micro-batch takes from a tenth of a millisecond to some ten; a second is trouble.
STAGE_BUCKETS_S = (1e-4, 2.5e-4, 5e-4, 1e-3, 2.5e-3, 5e-3, 0.01, 0.025, 0.05, 0.1, 0.25, 1.0)
# Dense around what is promised, a median under 20 ms and 99 % under 50 ms; 10 s for a catch-up.
DELAY_BUCKETS_S = (
    1e-3,
    2e-3,
    5e-3,
    0.01,
    0.015,
    0.02,
    0.03,
    0.05,
    0.075,
    0.1,
    0.2,
    0.5,
    1,
    2,
    5,
    10,
)
CHECKPOINT_BUCKETS_S = (5e-3, 0.01, 0.02, 0.05, 0.1, 0.2, 0.5, 1, 2, 5)
COUNT_BUCKETS = (1, 2, 5, 10, 20, 50, 100, 200, 500, 1000, 2000, 5000, 10_000)
# Restores and swaps are rare and take seconds, a large restore minutes.
LONG_BUCKETS_S = (0.1, 0.25, 0.5, 1, 2.5, 5, 10, 30, 60, 300, 900)
TRAINING_BUCKETS_S = (10, 30, 60, 120, 300, 600, 1800, 3600, 7200, 21_600)


class Metrics:
    """What a worker measures. Safe to use from several threads.

    Args:
        registry: Where they are registered; one instance per registry.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        register_build(registry)
        own: dict[str, Any] = {"registry": registry}
        self.events = by_label(
            Counter(
                "lrurec_events", "Records consumed, each once by its result", ["result"], **own
            ),
            EVENT_RESULTS,
        )
        self.dead_events = by_label(
            Counter("lrurec_dead_events", "Records sent to the dead letters", ["reason"], **own),
            DeadReason,
        )
        self.late_events = Counter(
            "lrurec_late_events",
            "Micro-batches of a user whose last event is older than the one before",
            **own,
        )
        self.last_event_timestamp = Gauge(
            "lrurec_last_event_timestamp_seconds", "Latest time of an applied event", **own
        )
        self.batch_events = Histogram(
            "lrurec_batch_events", "Records in a micro-batch", buckets=COUNT_BUCKETS, **own
        )
        self.stage_seconds = by_label(
            Histogram(
                "lrurec_stage_seconds",
                "Time of a micro-batch in a stage",
                ["stage"],
                buckets=STAGE_BUCKETS_S,
                **own,
            ),
            STAGES,
        )
        self.event_to_recommendation = ArrayHistogram(
            "lrurec_event_to_recommendation_seconds",
            "From a record's timestamp to the sending of its recommendation",
            DELAY_BUCKETS_S,
            registry,
        )
        self.recommendations = by_label(
            Counter("lrurec_recommendations", "Recommendations made", ["source"], **own), SOURCES
        )
        self.short_recommendations = Counter(
            "lrurec_short_recommendations", "Recommendations of fewer than K items", **own
        )
        self.users_forgotten = Counter(
            "lrurec_users_forgotten", "States deleted since their user is to be forgotten", **own
        )
        self.stale_states_served = Counter(
            "lrurec_stale_states_served",
            "Recommendations from a state of other weights than the serving ones; always 0",
            **own,
        )
        self.states_rebuilt = Counter(
            "lrurec_states_rebuilt", "States computed anew from the items they remember", **own
        )
        self.model_version = Gauge(
            "lrurec_model_version", "Version of the serving release; 0: none", **own
        )
        self.model_swaps = by_label(
            Counter(
                "lrurec_model_swaps", "Announced releases by what came of them", ["result"], **own
            ),
            ("loaded", "rejected"),
        )
        self.rejected_version = Gauge(
            "lrurec_model_rejected_version",
            "Version of the release announced last, where it was rejected; else 0",
            **own,
        )
        self.model_swap_seconds = Histogram(
            "lrurec_model_swap_seconds",
            "Time to load and check a release, beside the serving one",
            buckets=LONG_BUCKETS_S,
            **own,
        )
        self.checkpoint_rows = Histogram(
            "lrurec_checkpoint_rows", "Rows in a checkpoint", buckets=COUNT_BUCKETS, **own
        )
        self.checkpoint_seconds = Histogram(
            "lrurec_checkpoint_seconds",
            "Time of a partition's checkpoint until all of it is durable",
            buckets=CHECKPOINT_BUCKETS_S,
            **own,
        )
        self.restored_rows = Counter(
            "lrurec_restore_rows", "Rows read from the changelog on assignment", **own
        )
        self.standby_rows = Counter(
            "lrurec_standby_rows", "Rows read from the changelog as a standby", **own
        )
        self.restore_left = Gauge(
            "lrurec_restore_left_rows",
            "Changelog offsets that a partition lacks before it flows: as many rows, or fewer",
            ["partition"],
            **own,
        )
        self.restoring_partitions = Gauge(
            "lrurec_restoring_partitions", "Partitions whose rows are being read", **own
        )
        self.standby_lag = Gauge(
            "lrurec_standby_lag_rows",
            "Changelog offsets that a standby of this worker lacks",
            ["partition"],
            **own,
        )
        self.standby_partitions = Gauge(
            "lrurec_standby_partitions", "Partitions that this worker is a standby of", **own
        )
        self.restore_seconds = Histogram(
            "lrurec_restore_seconds",
            "Time from an assignment until its partitions flow",
            buckets=LONG_BUCKETS_S,
            **own,
        )
        self.ready = Gauge("lrurec_ready", "Whether partitions flow, as /readyz says", **own)
        self.partitions_owned = Gauge("lrurec_partitions_owned", "Partitions of this worker", **own)
        self.consumer_lag = Gauge(
            "lrurec_consumer_lag_events",
            "Records of an owned partition that are not answered yet",
            ["partition"],
            **own,
        )
        self.hot_rows = Gauge("lrurec_hot_rows", "States held on the device", **own)
        self.hot_row_reads = by_label(
            Counter("lrurec_hot_row_reads", "Look-ups of states on the device", ["result"], **own),
            ("hit", "miss"),
        )
        self.prequential_events = Counter(
            "lrurec_prequential_events", "Events that the list before them was held against", **own
        )
        self.prequential_hits = by_label(
            Counter(
                "lrurec_prequential_hits",
                "Of these, events whose item was in the list that the method gave before it",
                ["method"],
                **own,
            ),
            METHODS,
        )
        self._registry = registry
        self._by_partition: dict[Gauge, set[int]] = {}

    def observe_stages(self, stages: Sequence[str], seconds: Iterable[float]) -> None:
        """Note how long each stage of a micro-batch took."""
        for stage, elapsed_s in zip(stages, seconds, strict=True):
            self.stage_seconds[stage].observe(elapsed_s)

    def count_events(
        self,
        *,
        applied: int,
        duplicate: int,
        skipped: int,
        forgotten: int,
        unknown_item: int,
        dead: Mapping[DeadReason, int],
    ) -> None:
        """Count a micro-batch's records.

        Args:
            applied: Events that were new, those of unknown items among them.
            duplicate: Events that had been applied before.
            skipped: Records whose event type does not count.
            forgotten: Events from before the time up to which their user is forgotten.
            unknown_item: Of the applied ones, those whose item the model does not know.
            dead: Records that were no events, by reason.
        """
        self.events["applied"].inc(applied - unknown_item)
        self.events["unknown_item"].inc(unknown_item)
        self.events["duplicate"].inc(duplicate)
        self.events["skipped"].inc(skipped)
        self.events["forgotten"].inc(forgotten)
        self.events["dead"].inc(sum(dead.values()))
        for reason, number in dead.items():
            self.dead_events[reason].inc(number)
        seen = applied + duplicate + skipped + forgotten + sum(dead.values())
        self.batch_events.observe(seen)

    def count_recommendations(self, by_source: Mapping[str, int], *, short: int) -> None:
        """Count recommendations by source, and those of them that have fewer than K items."""
        for source, number in by_source.items():
            self.recommendations[source].inc(number)
        self.short_recommendations.inc(short)

    def count_hot_rows(self, hits: int, misses: int, held: int) -> None:
        """Count look-ups of states on the device, and set how many it holds."""
        self.hot_row_reads["hit"].inc(hits)
        self.hot_row_reads["miss"].inc(misses)
        self.hot_rows.set(held)

    def count_checkpoint(self, rows: int, seconds: float) -> None:
        """Note one checkpoint of one partition."""
        self.checkpoint_rows.observe(rows)
        self.checkpoint_seconds.observe(seconds)

    def set_lag(self, lags: Mapping[int, int]) -> None:
        """Set the lag of every owned partition; the series of others end."""
        self._set_by_partition(self.consumer_lag, lags)

    def count_restored(self, standby: bool, rows: int) -> None:
        """Count rows read from the changelog."""
        (self.standby_rows if standby else self.restored_rows).inc(rows)

    def set_restoring(self, restoring: Mapping[int, int], standbys: Mapping[int, int]) -> None:
        """Set how many changelog offsets partitions lack; the series of others end.

        Args:
            restoring: Of each partition that is being restored.
            standbys: Of each that this worker is a standby of.
        """
        self.restoring_partitions.set(len(restoring))
        self._set_by_partition(self.restore_left, restoring)
        self.standby_partitions.set(len(standbys))
        self._set_by_partition(self.standby_lag, standbys)

    def _set_by_partition(self, gauge: Gauge, values: Mapping[int, int]) -> None:
        for partition in self._by_partition.get(gauge, set()) - values.keys():
            gauge.remove(str(partition))
        self._by_partition[gauge] = set(values)
        for partition, value in values.items():
            gauge.labels(str(partition)).set(value)

    def watch_store(self, stats: StoreStats) -> None:
        """Export what a store counts itself, read whenever the metrics are."""
        self._registry.register(StoreCollector(stats))


class SupervisorMetrics:
    """What a supervisor of several worker processes measures itself.

    Args:
        registry: Where they are registered; one instance per registry.
        processes: How many there are.
    """

    def __init__(self, registry: CollectorRegistry, processes: int) -> None:
        own: dict[str, Any] = {"registry": registry}
        numbers = [str(number) for number in range(processes)]
        self.up = by_label(
            Gauge("lrurec_process_up", "Whether a worker process answers", ["process"], **own),
            numbers,
        )
        self.restarts = by_label(
            Counter(
                "lrurec_process_restarts",
                "Times that a worker process ended by itself and was started again",
                ["process"],
                **own,
            ),
            numbers,
        )


class TrainerMetrics:
    """What a trainer measures.

    Args:
        registry: Where they are registered; one instance per registry.
    """

    def __init__(self, registry: CollectorRegistry) -> None:
        register_build(registry)
        own: dict[str, Any] = {"registry": registry}
        self.runs = by_label(
            Counter("lrurec_train_runs", "Trainings by what came of them", ["result"], **own),
            ("released", "rejected", "failed"),
        )
        self.seconds = Histogram(
            "lrurec_train_seconds",
            "Time of a training from reading the topic to the announcement",
            buckets=TRAINING_BUCKETS_S,
            **own,
        )
        self.steps = Counter("lrurec_train_steps", "Steps of the optimiser", **own)
        self.loss = Gauge("lrurec_train_loss", "Loss of the latest step, in nats", **own)
        self.events = Gauge("lrurec_train_events", "Events of the last training", **own)
        self.recall = by_label(
            Gauge(
                "lrurec_train_recall_ratio",
                "Recall@10 of the last training on held-out last items",
                ["method"],
                **own,
            ),
            ("model", "popularity"),
        )
        self.last_release_timestamp = Gauge(
            "lrurec_train_last_release_timestamp_seconds",
            "When the last release was made that the gate let pass; 0: none yet",
            **own,
        )
