"""Readings of /metrics and the figures between them, on pages that a worker's metrics write."""

import math

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.demo.figures import (
    DELAY,
    Reading,
    figures_between,
    parse_reading,
    quantile,
    take_reading,
)
from pipeline.metrics import METHODS, Metrics


class Page:
    """A worker's metrics and the page that shows them."""

    def __init__(self) -> None:
        self._registry = CollectorRegistry()
        self.metrics = Metrics(self._registry)

    def read(self, at_s: float) -> Reading:
        return parse_reading(generate_latest(self._registry).decode(), at_s)


def work(page: Page) -> None:
    """A micro-batch of 20 records for 12 users, and its checkpoint."""
    metrics = page.metrics
    metrics.count_events(applied=17, duplicate=2, skipped=1, forgotten=0, unknown_item=3, dead={})
    metrics.observe_stages(("decode", "load", "rank", "encode"), (0.001, 0.001, 0.005, 0.001))
    metrics.count_recommendations({"model": 11, "cold_start": 1}, short=2)
    metrics.count_checkpoint(12, 0.04)
    metrics.set_lag({0: 4, 3: 5})
    metrics.prequential_events.inc(17)
    metrics.prequential_hits["model"].inc(6)
    metrics.prequential_hits["popularity"].inc(1)
    metrics.event_to_recommendation.observe_many(np.array([0.012] * 98 + [0.04] * 2))


def test_figures_count_only_what_was_between_the_readings() -> None:
    """What a worker did before the first reading changes nothing."""
    page = Page()
    work(page)
    first = page.read(100.0)
    work(page)
    work(page)

    figures = figures_between(first, page.read(104.0))

    assert figures.seconds == 4.0
    assert figures.answered == 40
    assert figures.rate == 10.0
    assert figures.lag == 9
    assert figures.batch_events == 20
    assert figures.batch_s == pytest.approx(0.008)
    assert figures.checkpoint_rows == 12
    assert figures.checkpoint_s == pytest.approx(0.04)
    assert figures.recommendations == 24
    assert figures.short == 4
    assert figures.stale == 0
    assert figures.judged == 34
    assert figures.recall == {"model": 12 / 34, "popularity": 2 / 34, "repeat_last": 0.0}
    assert figures.p50_s is not None
    assert 0.01 < figures.p50_s <= 0.015
    assert figures.p99_s is not None
    assert 0.03 < figures.p99_s <= 0.05


def test_where_nothing_was_done_there_are_no_means() -> None:
    """Two readings of an idle worker, even the same one, divide by nothing."""
    reading = Page().read(7.0)

    figures = figures_between(reading, reading)

    assert figures.rate == 0
    assert figures.recall == dict.fromkeys(METHODS)
    assert figures.p50_s is figures.p99_s is figures.batch_s is figures.checkpoint_rows is None


def test_a_quantile_above_all_buckets_is_infinite() -> None:
    """More than the histogram can tell is not made up."""
    page = Page()
    first = page.read(0.0)
    page.metrics.event_to_recommendation.observe_many(np.array([0.001, 99.0]))

    assert quantile(first, page.read(1.0), DELAY, 0.99) == math.inf


def test_a_worker_that_does_not_answer_gives_no_reading() -> None:
    """Nobody listens on port 1 of this machine."""
    assert take_reading(1) is None
