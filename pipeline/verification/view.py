"""The result of `lrurec verify` for people: a line per promise, then what is wrong."""

from collections import Counter
from collections.abc import Iterator

from rich.console import Console
from rich.table import Table
from rich.text import Text

from pipeline.printable import escaped
from pipeline.verification.report import FINDINGS_OF_A_KIND, VerifyReport
from pipeline.verification.states import STATE_TOLERANCE


def print_report(report: VerifyReport, console: Console) -> None:
    """Print the verdict on every promise, what could not be judged, and the first findings."""
    table = Table(show_edge=False, pad_edge=False)
    for column in ("promise", "", "what was found"):
        table.add_column(column)
    for promise, holds, figures in _promises(report):
        verdict = Text("holds", "green") if holds else Text("BROKEN", "bold red")
        table.add_row(promise, verdict, Text(figures))
    console.print(table)
    for line in _unjudged(report):
        console.print(Text(f"not judged: {line}", "yellow"))
    if report.users_on_several_partitions:
        console.print(Text(_several_partitions(report), "yellow"))
    for finding in report.findings:
        console.print(Text(escaped(f"{finding.kind}: {finding}"), "red"))
    shown = Counter(finding.kind for finding in report.findings)
    if full := [kind for kind, count in shown.items() if count == FINDINGS_OF_A_KIND]:
        listed = f"the first {FINDINGS_OF_A_KIND} are listed, all are counted above"
        console.print(Text(f"{', '.join(full)}: {listed}", "red"))
    summary = "every promise holds" if report.holds else "a promise is broken"
    style = "bold green" if report.holds else "bold red"
    console.print(Text(f"{summary} ({report.users:,} users, {report.seconds:.1f} s)", style))


def _several_partitions(report: VerifyReport) -> str:
    places = " and ".join(
        f"partition {partition} offset {offset}"
        for partition, offset in report.users_on_several_partitions_at
    )
    return (
        f"users with events on several partitions: {report.users_on_several_partitions:,} (one has "
        f"{places}); each has a state and a list for every one of them: expected all events of a "
        "user on one partition, see docs/existing-topic.md, part 3"
    )


def _promises(report: VerifyReport) -> Iterator[tuple[str, bool, str]]:
    offsets, outputs = report.offsets, report.outputs
    at = report.max_abs_diff_at
    where = "" if at is None else f" (partition {at[0]} offset {at[1]})"
    yield (
        "Step = scan",
        not report.states_different,
        f"{report.states:,} states computed anew, {report.states_different:,} different; "
        f"largest difference {report.max_abs_diff:.2g}{where}, allowed {STATE_TOLERANCE:g}",
    )
    yield (
        "Each event counts once",
        not report.rows_wrong,
        f"{report.rows:,} rows, {report.rows_wrong:,} wrong; {offsets.applied:,} events applied, "
        f"{offsets.duplicate:,} repeats ignored",
    )
    yield (
        "Nothing is lost",
        not (offsets.missing or report.dead_letters_wrong or outputs.missing),
        f"{offsets.missing:,} offsets missing; {offsets.dead:,} dead letters, "
        f"{report.dead_letters_wrong:,} wrong; {offsets.skipped:,} skipped by type, "
        f"{offsets.without_record:,} without a record; {outputs.missing:,} users without their "
        f"answer; {offsets.pending:,} pending",
    )
    yield (
        "Never a stale state",
        not report.stale,
        f"{outputs.lists:,} lists computed anew, {report.stale:,} stale",
    )
    yield (
        "Always K, never excluded",
        not (outputs.short or outputs.wrong),
        f"{outputs.checked:,} recommendations, {outputs.short:,} short, {outputs.wrong:,} wrong",
    )
    if report.users_forgotten:
        yield (
            "A forgotten user stays forgotten",
            not report.unforgotten,
            f"{report.users_forgotten:,} users, {offsets.forgotten:,} of their events left out; "
            f"{report.unforgotten:,} states and recommendations hold what was to be forgotten",
        )


def _unjudged(report: VerifyReport) -> Iterator[str]:
    reasons = {
        "states whose events or release are gone, or whose user is just being forgotten": (
            report.states_unverifiable
        ),
        "recommendations whose events, release or state are gone, or from before a command": (
            report.outputs.unverifiable
        ),
        "records whose dead letters retention may have removed": report.dead_letters_unverifiable,
        "partitions with states and without a committed offset": report.partitions_uncommitted,
        "announced releases that cannot be read": report.releases_unreadable,
    }
    for reason, count in reasons.items():
        if count:
            yield f"{count:,} {reason}"
