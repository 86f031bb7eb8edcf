"""Dead letters against the records they are of."""

import hashlib
import math
from collections.abc import Iterable, Mapping
from typing import NamedTuple

from pipeline.cluster.records import Record
from pipeline.engine.processor import record_bytes
from pipeline.verification.oracle import DeadRecord, LogOracle
from pipeline.verification.report import Findings, Kind

MOST_BYTES = 900_000
"""A record of at most so many bytes, as `record_bytes` has it, is in its letter whole."""


class _Letter(NamedTuple):
    """Where a letter lies, its time, and its record's offset; -1: none of the same partition."""

    offset: int
    timestamp_ms: int
    source_offset: int


class LetterCheck:
    """Holds the dead-letter topic to the log: every dead record is there, and no other one.

    Args:
        oracle: What the log says.
        source: Name of the interactions topic; letters of another one are left alone.
        findings: Takes what is wrong.

    Attributes:
        missing: Dead records that were answered for and have no letter.
        unverifiable: Those whose letter retention may have removed.
    """

    def __init__(self, oracle: LogOracle, source: str, findings: Findings) -> None:
        self._oracle = oracle
        self._source = source.encode()
        self._findings = findings
        self._found: set[tuple[int, int]] = set()
        self._letters: dict[int, list[_Letter]] = {}  # by their own partition
        self.missing = self.unverifiable = 0

    def take(self, record: Record) -> None:
        """Check one letter; a record may have several, since delivery is at least once."""
        source_offset = self._check(record)
        letter = _Letter(record.offset, record.timestamp, source_offset)
        self._letters.setdefault(record.partition, []).append(letter)

    def _check(self, record: Record) -> int:
        """Return the offset of the letter's record; -1 where it is of none of its partition."""
        # The stream's own come after those of the record; one without a value is none of them.
        given = dict[str, bytes | None](record.headers)
        headers = {name: value for name, value in given.items() if value is not None}
        if headers.get("lrurec-topic") != self._source:
            return -1
        try:
            partition = int(headers["lrurec-partition"])
            offset = int(headers["lrurec-offset"])
            reason = headers["lrurec-reason"].decode()
        except (KeyError, ValueError) as error:
            what = f"headers of the letter at offset {record.offset} of its topic"
            got = f"{type(error).__name__}: {error}"
            self._findings.add(
                Kind.LETTER, record.partition, -1, what, "partition, offset and reason", got
            )
            return -1
        log = self._oracle.partitions.get(partition)
        own = offset if record.partition == partition else -1
        if log is not None and (offset < log.first or offset >= log.end):
            return own  # its record is gone, or came in after the log was read
        dead = self._oracle.dead.get((partition, offset))
        if dead is None and log is not None and log.lacks_middle:
            return own  # its record may be gone
        if dead is None:
            got = f"a dead letter, {reason}"
            expected = "a record that is dead"
            self._findings.add(Kind.LETTER, partition, offset, "letter", expected, got)
            return -1
        time_ms = headers.get("lrurec-timestamp-ms")  # not in letters of before there was one
        if reason != dead.reason:
            self._findings.add(Kind.LETTER, partition, offset, "reason", dead.reason, reason)
        elif time_ms not in (None, b"%d" % dead.timestamp_ms):
            what, got = "lrurec-timestamp-ms", time_ms.decode(errors="replace")
            self._findings.add(Kind.LETTER, partition, offset, what, dead.timestamp_ms, got)
        elif record.partition != partition:
            what = "partition of the letter"
            self._findings.add(Kind.LETTER, partition, offset, what, partition, record.partition)
        elif not _holds(record, headers, dead):
            what, expected = "key, value and headers", "those of the record"
            self._findings.add(Kind.LETTER, partition, offset, what, expected, "others")
        self._found.add((partition, offset))
        return own

    def finish(self, letters_first: Mapping[int, int]) -> None:
        """Find dead records without a letter.

        Args:
            letters_first: The first offset of the dead letters that exists after they were read, by
                partition: retention may have removed some before they came.
        """
        oldest = {p: self._oldest(p, first) for p, first in letters_first.items() if first > 0}
        for (partition, offset), dead in self._oracle.dead.items():
            is_due = offset < self._oracle.partitions[partition].committed
            if not is_due or (partition, offset) in self._found:
                continue
            until_ms, below = oldest.get(partition, (-math.inf, -1))
            if dead.timestamp_ms <= until_ms or offset < below:
                self.unverifiable += 1
                continue
            self.missing += 1
            what, expected = "record that is no event", f"a dead letter, {dead.reason}"
            self._findings.add(Kind.MISSING, partition, offset, what, expected, "none")

    def _oldest(self, partition: int, first: int) -> tuple[float, int]:
        """Return up to what time, and below what offset, the letters of records may be removed.

        A letter is younger than its record, so letters of younger records than the oldest letter
        that is left are not removed yet. A record's own time may be of a clock that runs ahead; but
        letters are sent in the order of their records, all but some of more than `MOST_BYTES`.
        """
        left = [letter for letter in self._letters.get(partition, ()) if letter.offset >= first]
        until_ms = left[0].timestamp_ms if left else math.inf
        offsets = (letter.source_offset for letter in left if letter.source_offset >= 0)
        return until_ms, next(offsets, -1)


def _holds(record: Record, headers: Mapping[str, bytes], dead: DeadRecord) -> bool:
    """Tell whether a letter has its record, or the digest of one that is too large for it."""
    if record.key is None and record.value is None and "lrurec-value-sha256" in headers:
        digest = hashlib.sha256(dead.value or b"").hexdigest()
        is_its_own = headers["lrurec-value-sha256"] == digest.encode()
        return is_its_own and record_bytes(dead.key, dead.value, dead.headers) > MOST_BYTES
    own = _comparable(record.headers)[: len(dead.headers)]
    return (record.key, record.value, own) == (dead.key, dead.value, _comparable(dead.headers))


def _comparable(headers: Iterable[tuple[str, bytes]]) -> list[tuple[str, bytes]]:
    """Return headers but for names that are not ASCII: clients may read them in several ways."""
    return [(name if name.isascii() else "", value) for name, value in headers]
