"""What the long benchmark concludes from its samples, and the axes of its plot."""

import inspect
import itertools

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.processor import Processor
from pipeline.worker.recommend import RecommendationProcessor
from tests.benchmarks.bench_durable import CountingProcessor
from tests.benchmarks.bench_intake import IdleProcessor
from tests.benchmarks.bench_soak import trend
from tests.benchmarks.timeline import ticks
from tests.faust_apps import OffsetProcessor

SAMPLES = 240
PROCESSORS = [CountingProcessor, IdleProcessor, OffsetProcessor, RecommendationProcessor]
SAW = itertools.cycle([70.0, 80.0, 90.0, 100.0, 110.0])  # as compaction makes it


@pytest.mark.parametrize(
    ("rise_per_minute", "flat"), [(0.0, True), (-5.0, True), (0.5, True), (1.5, False)]
)
def test_a_line_that_rises_by_more_than_a_hundredth_is_not_flat(
    rise_per_minute: float, flat: bool
) -> None:
    """Only the second half counts, whatever the first one did."""
    samples = [
        {"minute": n / 12, "rss_mb": 1000 + rise_per_minute * n / 12 if n >= 120 else 5.0 * n}
        for n in range(SAMPLES)
    ]

    found = trend(samples, "rss_mb")

    assert found["flat"] is flat
    assert found["per_minute"] == pytest.approx(rise_per_minute, abs=1e-9)


@pytest.mark.parametrize(("rise_per_minute", "flat"), [(0.0, True), (4.0, False)])
def test_a_saw_is_flat_and_one_that_climbs_is_not(rise_per_minute: float, flat: bool) -> None:
    """Scatter is no rise, and hides none that is large enough to matter."""
    samples = [
        {"minute": n / 12, "file_handles": next(SAW) + rise_per_minute * n / 12}
        for n in range(SAMPLES)
    ]

    assert trend(samples, "file_handles")["flat"] is flat


@given(st.floats(-1e6, 1e6), st.floats(1e-3, 1e6))
def test_ticks_enclose_the_values_and_are_few(low: float, span: float) -> None:
    """Whatever the numbers, an axis holds them and can be read."""
    high = low + span

    found = ticks(low, high)

    rounding = 1e-6 * (abs(low) + span)
    assert found[0] <= low + rounding
    assert found[-1] >= high - rounding
    assert 2 <= len(found) <= 7
    assert found == sorted(set(found))


@pytest.mark.parametrize("processor", PROCESSORS, ids=lambda processor: processor.__name__)
def test_every_processor_is_called_as_the_engine_calls_it(processor: type) -> None:
    """Those of benchmarks run seldom; they have to follow the protocol all the same."""
    wanted = {
        name: list(inspect.signature(function).parameters)
        for name, function in vars(Processor).items()
        if inspect.isfunction(function) and not name.startswith("_")
    }
    assert "process" in wanted

    got = {name: list(inspect.signature(getattr(processor, name)).parameters) for name in wanted}
    assert got == wanted
