"""A worker's /metrics read from outside, and what two readings say of the time between them."""

import math
import threading
import time
from collections import deque
from collections.abc import Mapping
from dataclasses import dataclass
from http.client import HTTPException
from typing import Self
from urllib.request import urlopen

from pipeline.metrics import METHODS

ANSWER_DEADLINE_S = 5.0
SAMPLE_PERIOD_S = 1.0
WINDOW_SAMPLES = 10
DELAY = "lrurec_event_to_recommendation_seconds"


@dataclass(frozen=True, kw_only=True)
class Reading:
    """Every series of /metrics at one moment.

    Attributes:
        at_s: When, on the monotonic clock.
        series: Value by name and labels, as they are spelt on the page.
    """

    at_s: float
    series: Mapping[str, float]

    def value(self, series: str) -> float:
        """Return one series; 0 where there is none."""
        return self.series.get(series, 0.0)

    def total(self, name: str) -> float:
        """Return the sum of a metric over all its labels."""
        return sum(v for key, v in self.series.items() if key == name or key.startswith(name + "{"))


def parse_reading(page: str, at_s: float) -> Reading:
    """Read a page in Prometheus' text format that carries no timestamps."""
    lines = (line for line in page.splitlines() if line and not line.startswith("#"))
    return Reading(
        at_s=at_s,
        series={key: float(number) for key, _, number in (x.rpartition(" ") for x in lines)},
    )


def take_reading(port: int) -> Reading | None:
    """Ask the worker on this machine; None where it does not answer."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=ANSWER_DEADLINE_S) as answer:
            page: bytes = answer.read()
    except (OSError, HTTPException):
        return None
    return parse_reading(page.decode(), time.monotonic())


def is_ready(port: int) -> bool:
    """Tell whether the worker's partitions flow."""
    try:
        with urlopen(f"http://127.0.0.1:{port}/readyz", timeout=ANSWER_DEADLINE_S):
            return True
    except (OSError, HTTPException):
        return False


@dataclass(frozen=True, kw_only=True)
class Figures:
    """What a worker did between two readings; means and quantiles are None where nothing was.

    Attributes:
        seconds: Between the two.
        answered: Records of the interactions that were dealt with.
        rate: The same per second.
        p50_s: Median from a record's timestamp to the sending of its recommendation.
        p99_s: 99 % took no longer than this.
        lag: Records that waited at the second reading.
        batch_events: Mean records of a micro-batch.
        batch_s: Mean time of a micro-batch.
        checkpoint_rows: Mean rows of a checkpoint.
        checkpoint_s: Mean time of a checkpoint.
        recommendations: Lists made.
        short: Of these, lists with fewer than K items.
        stale: Of these, from a state of other weights.
        judged: Events that the lists before them were held against.
        recall: Share of these that were in the list, by method.
    """

    seconds: float
    answered: int
    rate: float
    p50_s: float | None
    p99_s: float | None
    lag: int
    batch_events: float | None
    batch_s: float | None
    checkpoint_rows: float | None
    checkpoint_s: float | None
    recommendations: int
    short: int
    stale: int
    judged: int
    recall: Mapping[str, float | None]


def figures_between(first: Reading, last: Reading) -> Figures:
    """Work out the figures of the time between two readings of one worker."""

    def rise(name: str) -> float:
        return last.total(name) - first.total(name)

    def mean(total: str, count: str) -> float | None:
        return rise(total) / rise(count) if rise(count) else None

    seconds = last.at_s - first.at_s
    answered = rise("lrurec_events_total")
    judged = rise("lrurec_prequential_events_total")

    def share(method: str) -> float | None:
        series = f'lrurec_prequential_hits_total{{method="{method}"}}'
        return (last.value(series) - first.value(series)) / judged if judged else None

    return Figures(
        seconds=seconds,
        answered=int(answered),
        rate=answered / seconds if seconds else 0.0,
        p50_s=quantile(first, last, DELAY, 0.5),
        p99_s=quantile(first, last, DELAY, 0.99),
        lag=int(last.total("lrurec_consumer_lag_events")),
        batch_events=mean("lrurec_batch_events_sum", "lrurec_batch_events_count"),
        batch_s=mean("lrurec_stage_seconds_sum", "lrurec_batch_events_count"),
        checkpoint_rows=mean("lrurec_checkpoint_rows_sum", "lrurec_checkpoint_rows_count"),
        checkpoint_s=mean("lrurec_checkpoint_seconds_sum", "lrurec_checkpoint_seconds_count"),
        recommendations=int(rise("lrurec_recommendations_total")),
        short=int(rise("lrurec_short_recommendations_total")),
        stale=int(rise("lrurec_stale_states_served_total")),
        judged=int(judged),
        recall={method: share(method) for method in METHODS},
    )


def quantile(first: Reading, last: Reading, name: str, share: float) -> float | None:
    """Return a quantile of what a histogram took in between two readings.

    Within a bucket values count as evenly spread, as Prometheus does it. Infinite where the
    quantile lies above the last finite bound, None where nothing was taken in.
    """
    prefix = f'{name}_bucket{{le="'
    buckets = sorted(
        (float(key[len(prefix) : -2]), value - first.value(key))
        for key, value in last.series.items()
        if key.startswith(prefix)
    )
    if not buckets or not buckets[-1][1]:
        return None
    wanted = share * buckets[-1][1]
    below, counted = 0.0, 0.0
    for bound, cumulative in buckets:
        if cumulative >= wanted:
            if math.isinf(bound):
                return bound
            return below + (bound - below) * (wanted - counted) / (cumulative - counted)
        below, counted = bound, cumulative
    return math.inf


class Sampler:
    """Takes a reading every second in a thread of its own, for the length of a `with` block.

    Args:
        port: Of the worker's /metrics.
        first: The reading that everything is counted from.
    """

    def __init__(self, port: int, first: Reading) -> None:
        self._port = port
        self._first = first
        self._window = deque([first], maxlen=WINDOW_SAMPLES + 1)
        self._stopping = threading.Event()
        self._thread = threading.Thread(target=self._run, name="sampler", daemon=True)

    def recent(self) -> Figures:
        """Return the figures of the last ten seconds."""
        window = list(self._window)
        return figures_between(window[0], window[-1])

    def whole(self) -> Figures:
        """Return the figures since the first reading."""
        return figures_between(self._first, self._window[-1])

    def _run(self) -> None:
        while not self._stopping.wait(SAMPLE_PERIOD_S):
            reading = take_reading(self._port)
            if reading is not None:
                self._window.append(reading)

    def __enter__(self) -> Self:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._stopping.set()
        self._thread.join(ANSWER_DEADLINE_S)
