"""What `lrurec verify` prints: a line per promise, what was not judged, what is wrong."""

import io
from dataclasses import replace

import pytest
from rich.console import Console

from pipeline.verification.report import (
    FINDINGS_OF_A_KIND,
    Finding,
    Kind,
    OffsetCounts,
    OutputCounts,
    VerifyReport,
)
from pipeline.verification.view import print_report

TRUE = VerifyReport(
    users=4339,
    users_on_several_partitions=0,
    users_on_several_partitions_at=(),
    rows=4339,
    rows_wrong=0,
    states=4339,
    states_different=0,
    states_unverifiable=0,
    max_abs_diff=3.2e-7,
    max_abs_diff_at=(1, 97943),
    offsets=OffsetCounts(
        applied=397924,
        duplicate=3,
        skipped=0,
        forgotten=0,
        dead=7,
        without_record=0,
        missing=0,
        pending=12,
    ),
    outputs=OutputCounts(checked=18772, lists=18700, short=0, missing=0, wrong=0, unverifiable=0),
    users_told=0,
    users_forgotten=0,
    unforgotten=0,
    stale=0,
    dead_letters_wrong=0,
    dead_letters_unverifiable=0,
    partitions_uncommitted=0,
    releases_unreadable=0,
    seconds=8.2,
    findings=(),
)


def printed(report: VerifyReport) -> str:
    """The report as text, 200 columns wide."""
    file = io.StringIO()
    print_report(report, Console(file=file, width=200))
    return file.getvalue()


def test_each_promise_has_a_line() -> None:
    """A true stream shows five promises that hold, with their figures."""
    text = printed(TRUE)

    assert text.count("holds") == 5 + 1
    assert "BROKEN" not in text
    assert "4,339 states computed anew, 0 different" in text
    assert "largest difference 3.2e-07 (partition 1 offset 97943), allowed 1e-05" in text
    assert "every promise holds (4,339 users, 8.2 s)" in text


@pytest.mark.parametrize(
    ("change", "promise"),
    [
        ({"states_different": 1}, "Step = scan"),
        ({"rows_wrong": 1}, "Each event counts once"),
        ({"offsets": replace(TRUE.offsets, missing=1)}, "Nothing is lost"),
        ({"dead_letters_wrong": 1}, "Nothing is lost"),
        ({"outputs": replace(TRUE.outputs, missing=1)}, "Nothing is lost"),
        ({"stale": 1}, "Never a stale state"),
        ({"outputs": replace(TRUE.outputs, short=1)}, "Always K, never excluded"),
        ({"outputs": replace(TRUE.outputs, wrong=1)}, "Always K, never excluded"),
    ],
)
def test_a_broken_promise_is_named(change: dict[str, object], promise: str) -> None:
    """Whatever count makes the report not hold shows in exactly one line."""
    report = replace(TRUE, **change)

    broken = [line for line in printed(report).splitlines() if "BROKEN" in line]

    assert not report.holds
    assert len(broken) == 1
    assert broken[0].startswith(promise)


def test_forgotten_users_have_a_line_where_there_are_any() -> None:
    """It says how many there are, and is broken where one of them is still there."""
    told = replace(
        TRUE, users_told=3, users_forgotten=2, offsets=replace(TRUE.offsets, forgotten=1200)
    )
    line = "A forgotten user stays forgotten"
    assert line not in printed(replace(TRUE, users_told=3))

    (kept,) = [text for text in printed(told).splitlines() if line in text]
    (broken,) = [
        text
        for text in printed(replace(told, rows_wrong=1, unforgotten=1)).splitlines()
        if line in text
    ]

    assert "holds" in kept
    assert "2 users, 1,200 of their events left out" in kept
    assert "BROKEN" in broken
    assert "1 states and recommendations hold what was to be forgotten" in broken


def test_findings_and_what_was_not_judged_are_listed() -> None:
    """A finding has its place, what was expected and what there is; brackets are text."""
    finding = Finding(
        kind=Kind.ROW, partition=1, offset=42, what="ring slot 3", expected="[7]", got="[/8]"
    )
    report = replace(TRUE, rows_wrong=1, states_unverifiable=2, findings=(finding,))

    text = printed(report)

    assert "row: partition 1 offset 42: ring slot 3: expected [7], got [/8]" in text
    assert "not judged: 2 states whose events or release are gone" in text
    assert "a promise is broken" in text


def test_findings_that_are_not_all_listed_are_said_to_be() -> None:
    """Of each kind the first are listed; where there may be more of them, a line says so."""
    few = tuple(
        Finding(kind=Kind.ROW, partition=1, offset=offset, what="item", expected="1", got="2")
        for offset in range(FINDINGS_OF_A_KIND - 1)
    )
    other = replace(few[0], kind=Kind.LETTER)
    line = f"row: the first {FINDINGS_OF_A_KIND} are listed, all are counted above"

    assert line in printed(replace(TRUE, findings=(*few, few[0], other)))
    assert "are listed" not in printed(replace(TRUE, findings=(*few, other)))


def test_what_a_letter_says_reaches_no_terminal_unescaped() -> None:
    """Its reason may be anything; a finding is one line."""
    finding = Finding(
        kind=Kind.LETTER, partition=0, offset=7, what="reason", expected="x", got="\x1b[2J\nbad"
    )

    assert r"expected x, got \x1b[2J\nbad" in printed(replace(TRUE, findings=(finding,)))
