"""Quantiles told from a histogram, held to those of the values themselves."""

import math

import numpy as np
from hypothesis import given
from hypothesis import strategies as st
from prometheus_client import CollectorRegistry, generate_latest

from pipeline.demo.figures import DELAY, parse_reading, quantile
from pipeline.metric_kinds import ArrayHistogram
from pipeline.metrics import DELAY_BUCKETS_S


@given(
    st.lists(st.floats(0.0, 9.9), min_size=1, max_size=60),
    st.sampled_from([0.01, 0.5, 0.9, 0.99, 1.0]),
)
def test_a_quantile_lies_in_the_bucket_of_the_true_one(values: list[float], share: float) -> None:
    """A histogram can tell no more; nor less."""
    registry = CollectorRegistry()
    histogram = ArrayHistogram(DELAY, "what is measured", DELAY_BUCKETS_S, registry)
    first = parse_reading(generate_latest(registry).decode(), 0.0)
    histogram.observe_many(np.array(values))
    last = parse_reading(generate_latest(registry).decode(), 1.0)
    true = sorted(values)[math.ceil(share * len(values)) - 1]

    told = quantile(first, last, DELAY, share)

    bounds = [0.0, *DELAY_BUCKETS_S]
    upper = next(n for n, bound in enumerate(bounds) if true <= bound and n > 0)
    assert told is not None
    assert bounds[upper - 1] <= told <= bounds[upper]
