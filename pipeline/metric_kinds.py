"""Kinds of metrics beyond the library's own, and how all of ours are made."""

import platform
import threading
from collections.abc import Iterable, Iterator, Sequence
from importlib import metadata
from typing import TypeVar

import numpy as np
from numpy.typing import NDArray
from prometheus_client import CollectorRegistry, Counter, Gauge, Histogram, Info
from prometheus_client.core import CounterMetricFamily, HistogramMetricFamily, Metric
from prometheus_client.registry import Collector

from state.store import StoreStats

MetricT = TypeVar("MetricT", Counter, Gauge, Histogram)


class ArrayHistogram(Collector):
    """A histogram that takes many values at once, for what is measured per event.

    Args:
        name: With its unit.
        documentation: For # HELP.
        buckets: Upper bounds, rising; the last one, infinity, goes without saying.
        registry: Where it is registered.
    """

    def __init__(
        self, name: str, documentation: str, buckets: Sequence[float], registry: CollectorRegistry
    ) -> None:
        self._name, self._documentation = name, documentation
        self._bounds = np.asarray(buckets, dtype=np.float64)
        self._counts = np.zeros(len(buckets) + 1, dtype=np.int64)
        self._sum = 0.0
        self._lock = threading.Lock()
        registry.register(self)

    def observe_many(self, values: NDArray[np.float64]) -> None:
        """Count values (n,); a negative one, from clocks that disagree, counts as 0."""
        values = np.maximum(values, 0.0)
        at = np.searchsorted(self._bounds, values, side="left")
        counts = np.bincount(at, minlength=len(self._counts))
        with self._lock:
            self._counts += counts
            self._sum += float(values.sum())

    def describe(self) -> list[Metric]:
        """Name the series that `collect` gives."""
        return [HistogramMetricFamily(self._name, self._documentation)]

    def collect(self) -> Iterator[Metric]:
        """Give the series."""
        with self._lock:
            cumulative, total = np.cumsum(self._counts).tolist(), self._sum
        bounds = [*(repr(float(bound)) for bound in self._bounds), "+Inf"]
        buckets = list(zip(bounds, cumulative, strict=True))
        yield HistogramMetricFamily(self._name, self._documentation, buckets, total)


class StoreCollector(Collector):
    """What a store counts itself, read whenever the metrics are.

    Args:
        stats: Its counts.
    """

    def __init__(self, stats: StoreStats) -> None:
        self._stats = stats

    def collect(self) -> Iterator[Metric]:
        """Give the series."""
        stats = self._stats
        counts = {
            "rows_read": (stats.rows_read, "Rows asked of the store"),
            "rows_missed": (stats.rows_missed, "Of these, rows that it did not have"),
            "rows_written": (stats.rows_written, "Rows written to the store"),
            "rows_deleted": (stats.rows_deleted, "Rows deleted from the store"),
            "written_bytes": (stats.bytes_written, "Keys and rows written to the store"),
            "batches_written": (stats.batches_written, "Atomic batches written to the store"),
        }
        for name, (value, documentation) in counts.items():
            yield CounterMetricFamily(f"lrurec_store_{name}", documentation, value)


def by_label(metric: MetricT, values: Iterable[str]) -> dict[str, MetricT]:
    """Return a metric's children by the values of its one label, made now: zero is visible."""
    return {str(value): metric.labels(str(value)) for value in values}


def register_build(registry: CollectorRegistry) -> None:
    """Export the versions of what runs."""
    packages = {"version": "lrurec-stream", "torch": "torch", "faust": "faust-streaming"}
    build = Info("lrurec_build", "What runs", registry=registry)
    build.info(
        {name: metadata.version(package) for name, package in packages.items()}
        | {"python": platform.python_version()}
    )
