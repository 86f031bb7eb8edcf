"""What the long benchmark concludes from its samples, the plots, and what others are made of."""

import inspect
import itertools
import tempfile
from pathlib import Path
from xml.etree import ElementTree

import pytest
from hypothesis import given
from hypothesis import strategies as st

from pipeline.engine.processor import Processor
from pipeline.worker.recommend import RecommendationProcessor
from tests.benchmarks.bench_durable import CountingProcessor
from tests.benchmarks.bench_intake import IdleProcessor
from tests.benchmarks.bench_soak import trend
from tests.benchmarks.plot import Panel, ticks, write_lines
from tests.faust_apps import OffsetProcessor

SAMPLES = 240
PROCESSORS = [CountingProcessor, IdleProcessor, OffsetProcessor, RecommendationProcessor]
SAW = itertools.cycle([70.0, 80.0, 90.0, 100.0, 110.0])  # as compaction makes it
POSITIVE = st.floats(1e-3, 1e6)
NAMES = st.text("abcdefgh ,", min_size=1, max_size=24)
SVG = "{http://www.w3.org/2000/svg}"
CHARACTER, HEIGHT = 6.6, 12.0  # of a text, as DejaVu Sans has them on the average


def box(text: ElementTree.Element) -> tuple[float, float, float, float]:
    """Left, top, right and bottom of a text, about."""
    width = CHARACTER * len(text.text or "")
    before = {"start": 0.0, "middle": width / 2, "end": width}[text.get("text-anchor", "")]
    left, base = float(text.get("x", "")) - before, float(text.get("y", ""))
    return left, base - HEIGHT + 2, left + width, base + 2


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


@given(
    st.dictionaries(
        NAMES,
        st.lists(st.tuples(st.integers(1, 10**6), POSITIVE), min_size=1),
        min_size=1,
        max_size=7,
    ),
    st.dictionaries(NAMES, POSITIVE, max_size=3),
    st.booleans(),
    st.booleans(),
)
def test_no_text_of_a_plot_covers_another_or_leaves_it(
    lines: dict[str, list[tuple[int, float]]],
    levels: dict[str, float],
    log_x: bool,
    log_y: bool,
) -> None:
    """Whatever the numbers, names and ticks can be read."""
    panel = Panel(
        title="us an event",
        x="users",
        lines={name: sorted(line) for name, line in lines.items()},
        levels=levels,
        log_x=log_x,
        log_y=log_y,
    )
    with tempfile.TemporaryDirectory() as folder:
        write_lines(Path(folder) / "plot.svg", "What it shows", [panel, panel])
        picture = ElementTree.parse(Path(folder) / "plot.svg").getroot()

    _, _, width, height = map(float, picture.get("viewBox", "").split())
    boxes = [box(text) for text in picture.iter(f"{SVG}text") if text.text]
    assert len(boxes) > 2 * (len(lines) + len(levels))
    for left, top, right, bottom in boxes:
        assert left >= 0
        assert right <= width
        assert top >= 0
        assert bottom <= height
    for one, other in itertools.combinations(boxes, 2):
        assert one[0] >= other[2] or other[0] >= one[2] or one[1] >= other[3] or other[1] >= one[3]


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
