"""The end of a demo: when it holds, what it prints, what its JSON has."""

import dataclasses
import io
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from rich.console import Console

from pipeline.demo.data import DemoData
from pipeline.demo.figures import Figures, figures_between, parse_reading
from pipeline.demo.summary import DemoReport, print_summary
from pipeline.files.rows import Interactions
from pipeline.replay import ReplayReport
from pipeline.training.job import TrainingReport
from pipeline.verification.report import Finding, Kind, OffsetCounts, OutputCounts, VerifyReport
from tests.releases import random_release

ITEMS = [f"item-{n}" for n in range(12)]


def figures() -> Figures:
    """Those of a worker that did nothing."""
    reading = parse_reading("", 0.0)
    return figures_between(reading, reading)


@pytest.fixture
def report(tmp_path: Path) -> DemoReport:
    """A demo in which everything held."""
    one = np.zeros(1, np.int32)
    rows = Interactions(
        user_ids=["u"],
        item_ids=["item-0"],
        event_types=[],
        users=one,
        items=one,
        types=None,
        timestamps_ms=one.astype(np.int64),
    )
    replayed = ReplayReport(records=8, seconds=2.0, last_offsets={0: 7})
    training = TrainingReport(
        release=random_release(tmp_path, ITEMS),
        refused=None,
        announced=True,
        metrics={"model": {"recall@10": 0.3}, "popularity": {"recall@10": 0.1}},
        validation={"recall@10": 0.35},
        serving_version=None,
        data={},
        epochs=4.0,
        best_epoch=3,
        stopped_by="time",
        training_s=150.0,
        seconds=160.0,
    )
    verified = VerifyReport(
        users=1,
        users_on_several_partitions=0,
        users_on_several_partitions_at=(),
        rows=1,
        rows_wrong=0,
        states=1,
        states_different=0,
        states_unverifiable=0,
        max_abs_diff=2e-7,
        max_abs_diff_at=(0, 7),
        offsets=OffsetCounts(
            applied=10,
            duplicate=0,
            skipped=0,
            forgotten=0,
            dead=0,
            without_record=0,
            missing=0,
            pending=0,
        ),
        outputs=OutputCounts(checked=10, lists=10, short=0, missing=0, wrong=0, unverifiable=0),
        users_told=0,
        users_forgotten=0,
        unforgotten=0,
        stale=0,
        dead_letters_wrong=0,
        dead_letters_unverifiable=0,
        partitions_uncommitted=0,
        releases_unreadable=0,
        seconds=1.0,
        findings=(),
    )
    return DemoReport(
        data=DemoData(name="clicks.csv", interactions=rows, titles={}),
        history=replayed,
        training=training,
        catch_up=figures(),
        live_rate=1000.0,
        live_replay=replayed,
        live=figures(),
        verified=verified,
        top_k=10,
        worker_exit_code=0,
        seconds=300.0,
    )


def broken(report: DemoReport, change: str, value: Any) -> DemoReport:
    """The same demo with one thing that went wrong."""
    verified, live = report.verified, report.live
    where, _, name = change.rpartition(".")
    if where == "offsets":
        offsets = dataclasses.replace(verified.offsets, **{name: value})
        return dataclasses.replace(report, verified=dataclasses.replace(verified, offsets=offsets))
    if where == "outputs":
        outputs = dataclasses.replace(verified.outputs, **{name: value})
        return dataclasses.replace(report, verified=dataclasses.replace(verified, outputs=outputs))
    if where == "live":
        return dataclasses.replace(report, live=dataclasses.replace(live, **{name: value}))
    if where == "verified":
        changed = dataclasses.replace(verified, **{name: value})
        return dataclasses.replace(report, verified=changed)
    return dataclasses.replace(report, **{name: value})


def printed(report: DemoReport, *, terminal: bool = False) -> str:
    output = io.StringIO()
    console = Console(file=output, width=100, force_terminal=terminal, color_system=None)
    print_summary(report, console, logs=[Path("worker.log")], hints=[("lrurec watch", "to see")])
    return output.getvalue()


def test_a_demo_holds_when_every_promise_was_kept(report: DemoReport) -> None:
    """And says so, with what shows it."""
    assert report.holds
    assert report.to_json()["holds"]
    text = printed(report)
    assert text.count("✓") == len(report.promises)
    assert "✗" not in text
    assert "1 states, largest difference 2e-07 (at most 1e-05)" in text
    assert "Every promise held (300 s)." in text
    assert "worker: worker.log" in text
    assert "lrurec watch" in text


@pytest.mark.parametrize(
    ("change", "value"),
    [
        ("verified.states_different", 1),
        ("verified.states", 0),
        ("verified.rows_wrong", 1),
        ("verified.stale", 1),
        ("verified.dead_letters_wrong", 1),
        ("offsets.missing", 1),
        ("offsets.pending", 1),
        ("outputs.short", 1),
        ("outputs.missing", 1),
        ("outputs.wrong", 1),
        ("live.stale", 1),
        ("worker_exit_code", 69),
    ],
)
def test_whatever_went_wrong_breaks_a_promise(report: DemoReport, change: str, value: int) -> None:
    """The demo does not hold, one promise has a cross, and the last line says so."""
    wrong = broken(report, change, value)

    assert not wrong.holds
    assert not wrong.to_json()["holds"]
    assert sum(not promise.kept for promise in wrong.promises) == 1
    text = printed(wrong)
    assert text.count("✗") == 1
    assert "Not every promise held" in text


def test_findings_are_told_in_words(report: DemoReport) -> None:
    """What verify found first, as it puts it."""
    finding = Finding(
        kind=Kind.STATE, partition=3, offset=7, what="state", expected="at most 1e-05", got="1"
    )
    wrong = broken(broken(report, "verified.states_different", 1), "verified.findings", (finding,))

    assert "✗ partition 3 offset 7: state: expected at most 1e-05, got 1" in printed(wrong)


def test_a_release_that_was_refused_is_told(report: DemoReport) -> None:
    """The demo serves it all the same, and says why it should not."""
    training = dataclasses.replace(report.training, refused="Recall@10 is too low")
    text = printed(dataclasses.replace(report, training=training))

    assert "served all the same: the release was refused: Recall@10 is too low" in text


def test_the_json_holds_everything(report: DemoReport) -> None:
    """Verify's report, rates, latencies, hit rates and baselines; as JSON reads it back."""
    content = json.loads(json.dumps(report.to_json()))

    assert content["verify"]["max_abs_diff"] == 2e-7
    assert content["replay"] == {"records": 8, "seconds": 2.0, "rate": 4.0}
    assert content["live"]["recall"] == {"model": None, "popularity": None, "repeat_last": None}
    assert {"p50_s", "p99_s", "rate", "wanted_rate", "judged", "stale"} <= content["live"].keys()
    assert content["training"]["metrics"]["popularity"] == {"recall@10": 0.1}
    assert content["data"] == {"name": "clicks.csv", "events": 1, "users": 1, "items": 1}


def test_the_json_has_no_infinity(report: DemoReport) -> None:
    """A latency beyond the histogram is null: other programs read no `Infinity`."""
    slow = broken(broken(report, "live.p99_s", math.inf), "live.p50_s", 0.5)

    live = json.loads(json.dumps(slow.to_json(), allow_nan=False))["live"]

    assert live["p99_s"] is None
    assert live["p50_s"] == 0.5


def test_a_terminal_gets_tables_that_fit(report: DemoReport) -> None:
    """Nothing is wider than the terminal."""
    assert max(map(len, printed(report, terminal=True).splitlines())) <= 100
