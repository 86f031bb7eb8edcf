"""Says in the log where a worker's settings look wrong, though nothing fails by them.

A mapping of fields, say: each dead letter tells why it is one, each event has some time; that
nearly all are so is seen here alone. Works with what a micro-batch has counted anyway.
"""

import logging
import time
from collections import Counter
from collections.abc import Callable, Mapping

import numpy as np

from models.release import Release
from pipeline.errors import DeadReason
from pipeline.events import MIN_AUTO_MS
from pipeline.worker.batch import DeadRecord, MicroBatch

logger = logging.getLogger(__name__)

LEAST_RECORDS = 200
"""So many are looked at together; fewer may be one producer's bad minute."""
DEAD_SHARE = 0.9
PERIOD_S = 600.0
"""Of one line about dead letters to the next."""
EARLY_MS = MIN_AUTO_MS
"""Times before March 1973 are no shop's, but what a time of today is in a wrong unit."""
GUIDE = "docs/existing-topic.md"


class SettingsWatch:
    """Warns of dead letters that are nearly all there is, of times that cannot be, of other topics.

    Args:
        source: The interactions topic.
        clock_s: Any clock.
    """

    def __init__(self, source: str, clock_s: Callable[[], float] = time.monotonic) -> None:
        self._source = source
        self._clock_s = clock_s
        self._quiet_until_s = -np.inf
        self._has_told_of_times = False
        self._begin()

    def _begin(self) -> None:
        self._events = 0
        self._dead = Counter[DeadReason]()
        self._examples: dict[DeadReason, DeadRecord] = {}

    def see(self, batch: MicroBatch, dead: Mapping[DeadReason, int]) -> None:
        """Look at a micro-batch; `dead` counts its dead letters by reason."""
        self._events += len(batch.user) + batch.forgotten
        self._dead.update(dead)
        for reason in dead.keys() - self._examples.keys():
            records = (one for records in batch.dead.values() for one in records)
            self._examples[reason] = next(one for one in records if one.reason == reason)
        seen = self._events + self._dead.total()
        if seen >= LEAST_RECORDS:
            if self._dead.total() >= DEAD_SHARE * seen and self._clock_s() >= self._quiet_until_s:
                self._tell_of_letters(seen)
                self._quiet_until_s = self._clock_s() + PERIOD_S
            self._begin()
        if not self._has_told_of_times:
            self._check_times(batch)

    def see_release(self, release: Release) -> None:
        """Look at a release that is to serve."""
        data = release.training.get("data")  # an imported one has none
        topic = data.get("topic", self._source) if isinstance(data, Mapping) else self._source
        if topic != self._source:
            logger.warning(
                "release %d was trained on %s, this worker reads %s. If two streams share this "
                "Kafka, stop the workers and give each stream a topics.models of its own, and all "
                "else that may not be shared: %s, part 6. If the topic was copied, all is well",
                release.version,
                topic,
                self._source,
                GUIDE,
            )

    def _tell_of_letters(self, seen: int) -> None:
        reason, number = self._dead.most_common(1)[0]
        about = {name: value for name, value in self._examples[reason].letter.about if value}
        logger.warning(
            "%s: of the last %d records that should be events %d went to the dead letters, %d of "
            "them as %s (partition %s offset %s: %s). If the mapping is wrong, stop the workers, "
            "correct fields.* and begin anew: %s, part 5",
            self._source,
            seen,
            self._dead.total(),
            number,
            reason.value,
            *(about[f"lrurec-{name}"].decode() for name in ("partition", "offset", "error")),
            GUIDE,
        )

    def _check_times(self, batch: MicroBatch) -> None:
        early = (batch.timestamp_ms < EARLY_MS) & (batch.record_ms >= EARLY_MS)
        if not early.any():
            return
        self._has_told_of_times = True
        event = int(early.argmax())
        users = np.cumsum([len(keys) for keys in batch.users.values()])
        partition = [*batch.users][int(np.searchsorted(users, batch.user[event], side="right"))]
        logger.warning(
            "%s: partition %d offset %d: the event's time is %s, its record's is %s: are "
            "fields.timestamp and fields.timestamp_unit right? An event that seems so old is left "
            "out as soon as its user is forgotten: %s, part 5",
            self._source,
            partition,
            batch.offset[event],
            _moment(batch.timestamp_ms[event]),
            _moment(batch.record_ms[event]),
            GUIDE,
        )


def _moment(time_ms: np.int64) -> str:
    # Not Python's datetime: a record's own timestamp may lie in any year.
    return str(np.datetime64(int(time_ms), "ms").astype("datetime64[s]")) + "Z"
