"""What the long benchmark concludes from its samples, the plots, and what others are made of."""

import inspect
import itertools
import json
import re
import tempfile
import typing
from pathlib import Path
from xml.etree import ElementTree

import numpy as np
import pytest
import torch
from hypothesis import given
from hypothesis import strategies as st

from models.packing import PAD, TrainingWindows
from pipeline.__main__ import main as lrurec
from pipeline.commands import bench
from pipeline.engine.processor import Processor
from pipeline.worker.recommend import RecommendationProcessor
from tests.benchmarks import learning_curve
from tests.benchmarks.__main__ import benchmark_names, draws
from tests.benchmarks.bench_durable import CountingProcessor
from tests.benchmarks.bench_intake import IdleProcessor
from tests.benchmarks.bench_soak import trend
from tests.benchmarks.forms import padded
from tests.benchmarks.plot import Panel, ticks, write_lines
from tests.benchmarks.sasrec import Sasrec
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


def test_learning_curves_are_drawn_from_what_evaluate_writes(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    """Every validation of every run is a point of its lines; the table has the test's figures."""
    rings = [" ".join(f"{(start + step) % 9}" for step in range(8)) for start in range(9)]
    data = tmp_path / "ring.seq.txt"
    data.write_text("".join(f"user-{number} {ring}\n" for number, ring in enumerate(rings)))
    quick = ["--model.hidden-size", "8", "--training.max-epochs", "3"]
    quick += ["--trainer.threads", "1", "--trainer.scan", "loop"]
    report = tmp_path / "ring.json"
    assert lrurec(["evaluate", str(data), *quick, "--json", str(report)]) == 0

    plot = tmp_path / "curves.svg"
    learning_curve.main(
        [str(report), f"again={report}", "--plot", str(plot), "--reference", "other=0.5"]
    )

    picture = ElementTree.parse(plot).getroot()
    lines = [line.get("points", "").split() for line in picture.iter(f"{SVG}polyline")]
    assert [len(line) for line in lines] == [3, 3, 3, 3]
    assert lines[0] == lines[1]
    assert len({point.split(",")[1] for point in lines[2]}) == 3  # the loss falls
    assert [text.text for text in picture.iter(f"{SVG}text")].count("other") == 1
    test_recall = json.loads(report.read_text())["metrics"]["test"]["model"]["recall@10"]
    assert f"{test_recall:.5f}" in capsys.readouterr().out.splitlines()[-1]


def test_the_compared_sasrec_sees_the_past_alone_and_its_last_position_is_the_whole_one_s() -> None:
    """What it computes for serving is what it computes for training."""
    generator = torch.Generator().manual_seed(0)
    model = Sasrec(20, 8, 6, 2, 0.2, generator).eval()
    items = torch.randint(1, 21, (5, 6), generator=generator)
    changed = items.clone()
    changed[:, 4:] = 1 + changed[:, 4:] % 20

    with torch.inference_mode():
        outputs = model(items)
        torch.testing.assert_close(model.encode(items), outputs[:, -1])
        torch.testing.assert_close(model(changed)[:, :4], outputs[:, :4])
        assert not torch.allclose(model(changed)[:, 4:], outputs[:, 4:])


@pytest.mark.parametrize("before", [True, False])
def test_padded_windows_hold_what_packed_ones_do(before: bool) -> None:
    """A pad stands only where there is no item, and has no label but the first item's."""
    windows = TrainingWindows.cut([[1, 2, 3], list(range(1, 12))], 4)

    items, labels = padded(windows, np.arange(len(windows)), 4, before=before)

    packed = windows.batch(np.arange(len(windows)))
    real = labels != PAD
    assert items[real].tolist() == packed.items.tolist()
    assert labels[real].tolist() == packed.labels.tolist()
    assert not items[~real].any()
    assert bool(real[0, -1]) is before


def test_every_benchmark_stands_on_their_page() -> None:
    """Whoever looks for one finds what it measures."""
    page = Path(__file__).parents[2] / "docs" / "benchmarks.md"

    rows = re.findall(r"^\| `lrurec bench (\w+)` \|", page.read_text(), re.MULTILINE)

    assert sorted(rows) == sorted(typing.get_args(bench.Name))


def test_lrurec_bench_says_which_benchmarks_draw() -> None:
    """`make bench` draws those too."""
    drawing = {name for name in benchmark_names() if draws(name)}

    help_text = inspect.getsource(bench).split("SVG file to draw them in; ")[1].split(" can.")[0]
    assert drawing == set(re.findall(r"\w+", help_text)) - {"and"}
