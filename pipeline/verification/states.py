"""Hidden states and lists against full scans over the log, release by release."""

import logging
import sys
from collections.abc import Collection, Iterator, Mapping, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt
import torch

from models.errors import ReleaseError
from models.release import Release
from pipeline.errors import SwapRejected
from pipeline.verification.lists import ListLog, OutputRules
from pipeline.verification.oracle import LogOracle, UserOf
from pipeline.verification.releases import KnownItems, KnownRelease
from pipeline.verification.report import Findings, Kind
from pipeline.verification.rescan import Rescan, Scanned, Stretch
from pipeline.verification.rows import StateTask

logger = logging.getLogger(__name__)

STATE_TOLERANCE = 1e-5
"""Largest `state_difference` that float32 explains."""

SCORE_TOLERANCE = 1e-4
"""Items whose scores are this close are tied; scores are sums of products with state and output."""

Ints = npt.NDArray[np.int64]


def state_difference(
    hidden: npt.NDArray[np.complex64], scanned: npt.NDArray[np.complex64]
) -> float:
    """Return the largest difference of a state's number from the scan's.

    Taken of the scan's largest number where that exceeds 1: rounding grows with what is rounded,
    and a well trained state has numbers around 10, whose last bit alone is 1e-6.
    """
    diff = float(np.abs(scanned - hidden).max()) / max(1.0, float(np.abs(scanned).max()))
    # Not a number, or infinite: JSON has neither.
    return diff if diff <= sys.float_info.max else sys.float_info.max


@dataclass(frozen=True, slots=True)
class _Job:
    """What a stretch is for.

    Attributes:
        task: The state to compare; None: lists only.
        lists: int64 (w,), rows of the list log, in the order of the stretch's ends.
        newest: Item index that moved the state last; 0: none did.
    """

    task: StateTask | None
    lists: Ints
    newest: int


class StateCheck:
    """Computes states and lists anew and compares.

    Args:
        oracle: What the log says.
        releases: Announced releases.
        rules: What lists have to keep to, and which users are looked at.
        findings: Takes what is wrong.

    Attributes:
        states: Hidden states compared.
        lists: Lists compared.
        unverifiable: Users whose row's release cannot be read any more.
        passed_over: Lists of users of whom something else was told meanwhile, or of a release that
            went meanwhile.
        max_abs_diff: Largest `state_difference`.
        max_abs_diff_at: Partition and offset of its row.
    """

    def __init__(
        self,
        oracle: LogOracle,
        releases: Sequence[KnownRelease],
        rules: OutputRules,
        findings: Findings,
    ) -> None:
        self._releases = releases
        self._rules = rules
        self._findings = findings
        self._users = list(oracle.users.items())
        self._changed: Collection[bytes] = ()
        self.states = self.lists = self.passed_over = 0
        self.unverifiable: set[UserOf] = set()
        self.max_abs_diff = 0.0
        self.max_abs_diff_at: tuple[int, int] | None = None

    def run(
        self,
        tasks: Sequence[StateTask],
        lists: Mapping[int, ListLog],
        changed: Collection[bytes] = (),
    ) -> None:
        """Compare states, and lists by the id of their weights.

        Args:
            tasks: States.
            lists: Lists.
            changed: Keys of users whose lists are passed over.
        """
        self._changed = changed
        by_weights: dict[int, list[StateTask]] = {}
        for task in tasks:
            if self._rules.covers(task.user) and self._names_a_release(task):
                by_weights.setdefault(task.row.weights_id, []).append(task)
        for weights_id in sorted(by_weights.keys() | lists.keys()):
            tasks = by_weights.get(weights_id, [])
            log = lists.get(weights_id) or ListLog(max(self._rules.sizes))
            self._run_release(weights_id, tasks, log)

    def _run_release(self, weights_id: int, tasks: Sequence[StateTask], log: ListLog) -> None:
        for known in self._releases:
            if known.release is None or known.weights_id != weights_id:
                continue
            try:
                rescan = Rescan(known.open())
            except (SwapRejected, ReleaseError) as error:  # it went since it was read first
                logger.warning("%s; what it made cannot be verified", error)
                continue
            stretches, jobs = self._plan(known.release, tasks, log)
            self._compare(known.release, rescan, stretches, jobs, log)
            return
        self.unverifiable.update(task.user for task in tasks)
        self.passed_over += len(log.partition)

    def _names_a_release(self, task: StateTask) -> bool:
        """Tell whether the row's release can be read; find rows that name none."""
        row, head = task.row, task.row.head
        version = int(head["model_version"])
        known = [known for known in self._releases if known.weights_id == row.weights_id]
        # Not to be read any more: perhaps of the same weights as one that is.
        is_gone = any(
            known.release is None and known.version == version for known in self._releases
        )
        if not known:
            if is_gone:
                self.unverifiable.add(task.user)
            else:
                self._wrong_row(task, "weights_id", "that of an announced release", row.weights_id)
            return False
        versions = [release.version for release in known]
        is_named = is_gone or version in versions
        if not is_named:
            self._wrong_row(task, "model_version", f"one of {versions} by its weights", version)
        assert known[0].release is not None  # it has weights
        config = known[0].release.config
        sizes, expected = row.hidden.shape, (config.n_blocks, config.state_size)
        if sizes != expected:
            self._wrong_row(task, "blocks and channels", expected, sizes)
        return is_named and sizes == expected

    def _wrong_row(self, task: StateTask, what: str, expected: object, got: object) -> None:
        self._findings.add(Kind.ROW, task.user[0], task.row.offset, what, expected, got)

    # --- what to compute

    def _plan(
        self, known: KnownItems, tasks: Sequence[StateTask], log: ListLog
    ) -> tuple[list[Stretch], list[_Job]]:
        """Put what rests on the same events of a user into one stretch: the state and its lists."""
        task_of = {task.user: task for task in tasks}
        lists_of = _rows_by_user(log)
        starts, counts = np.array(log.start, np.int64), np.array(log.count, np.int64)
        stretches: list[Stretch] = []
        jobs: list[_Job] = []
        for user, history in self._users:
            task, lists = task_of.get(user), lists_of.get(history.number, _NONE)
            if user[1] in self._changed:
                self.passed_over += len(lists)
                lists = _NONE
            if task is None and not len(lists):
                continue
            items = known.indices_of(history.items)
            known_before = np.append(0, np.cumsum(items > 0))  # of each event
            spans: dict[tuple[int, int], tuple[StateTask | None, Ints]] = {}
            if task is not None:
                own = lists[(starts[lists] == task.start) & (counts[lists] <= task.stop)]
                spans[task.start, task.stop] = task, own
                lists = lists[(starts[lists] != task.start) | (counts[lists] > task.stop)]
            for start in np.unique(starts[lists]).tolist():
                rows = lists[starts[lists] == start]
                spans[start, int(counts[rows].max())] = None, rows
            for (start, stop), (for_task, rows) in spans.items():
                span = items[start:stop]
                span = span[span > 0]
                ends = known_before[counts[rows]] - known_before[start]
                stretches.append(Stretch(items=span, ends=ends))
                jobs.append(_Job(for_task, rows, int(span[-1]) if len(span) else 0))
        return stretches, jobs

    # --- comparing

    def _compare(
        self,
        known: KnownItems,
        rescan: Rescan,
        stretches: Sequence[Stretch],
        jobs: Sequence[_Job],
        log: ListLog,
    ) -> None:
        barred = np.array(known.known_of(list(self._rules.barred)), np.int64)
        items = np.array(log.items, np.int64).reshape(-1, log.width)
        scores = np.array(log.scores, np.float64).reshape(-1, log.width)
        for batch in rescan.scan(stretches):
            for i, scanned in batch:
                self._compare_state(rescan.release, jobs[i], scanned)
            rows = np.concatenate([jobs[i].lists for i, _ in batch])
            if not len(rows):
                continue
            is_cold = np.concatenate([stretches[i].ends == 0 for i, _ in batch])
            above, errors = rescan.compare_lists(
                torch.cat([scanned.outputs for _, scanned in batch]),
                items[rows],
                scores[rows],
                self._left_out(known, log, rows),
                barred,
            )
            rising = np.where(items[rows][:, 1:] > 0, np.diff(scores[rows], axis=1), 0)
            rises = rising.max(axis=1, initial=0)
            self.lists += len(rows)
            for nth in range(len(rows)):
                row = int(rows[nth])
                for kind, what, expected, got in _problems(
                    above[nth], errors[nth], rises[nth], bool(is_cold[nth]), bool(log.is_cold[row])
                ):
                    self._findings.add(
                        kind, log.partition[row], log.offset[row], what, expected, got
                    )
                    break  # a list is wrong once

    def _compare_state(self, release: Release, job: _Job, scanned: Scanned) -> None:
        if job.task is None:
            return
        row, partition = job.task.row, job.task.user[0]
        self.states += 1
        diff = state_difference(row.hidden, scanned.hidden)
        if diff > self.max_abs_diff or self.max_abs_diff_at is None:
            self.max_abs_diff, self.max_abs_diff_at = diff, (partition, row.offset)
        if diff > STATE_TOLERANCE:
            what = f"hidden state by release {release.version}, largest difference from the scan's"
            expected = f"at most {STATE_TOLERANCE:g}"
            self._findings.add(Kind.STATE, partition, row.offset, what, expected, f"{diff:.3g}")
        newest = int(release.vocabulary.hashes[job.newest])
        if int(row.head["last_item"]) != newest:
            self._wrong_row(job.task, "last_item", newest, int(row.head["last_item"]))

    def _left_out(self, known: KnownItems, log: ListLog, rows: Ints) -> Ints:
        """Return items (m, n) that may be missing from each list; 0 for none."""
        if not (self._rules.exclude_seen or self._rules.told):
            return np.zeros((len(rows), 1), np.int64)
        left_out: list[list[int]] = []
        for row in rows.tolist():
            user, history = self._users[log.user[row]]
            left_out.append(self._rules.left_out(known, user, history, log.count[row]))
        table = np.zeros((len(rows), max(map(len, left_out)) + 1), np.int64)
        for nth, items in enumerate(left_out):
            table[nth, : len(items)] = items
        return table


_NONE = np.empty(0, np.int64)


def _rows_by_user(log: ListLog) -> dict[int, Ints]:
    """Return the rows of each user, by the user's number."""
    users = np.array(log.user, np.int64)
    order = np.argsort(users, kind="stable")
    numbers, first = np.unique(users[order], return_index=True)
    return (
        dict(zip(numbers.tolist(), np.split(order, first[1:]), strict=True)) if len(users) else {}
    )


def _problems(
    above: float, error: float, rise: float, is_cold: bool, says_cold: bool
) -> Iterator[tuple[Kind, str, object, object]]:
    """Yield what is wrong with a list, the gravest first."""
    tolerance = f"at most {SCORE_TOLERANCE:g}"
    if not above <= SCORE_TOLERANCE:
        what = "how far the best item that is not listed scores above the worst that is"
        yield Kind.STALE, what, tolerance, f"{above:.3g}"
    if not error <= SCORE_TOLERANCE:
        yield Kind.STALE, "error of a listed score", tolerance, f"{error:.3g}"
    if not rise <= SCORE_TOLERANCE:
        yield Kind.OUTPUT, "rise of the scores from one item to the next", tolerance, f"{rise:.3g}"
    if is_cold != says_cold:
        names = "model", "cold_start"
        yield Kind.OUTPUT, "source", names[is_cold], names[says_cold]
