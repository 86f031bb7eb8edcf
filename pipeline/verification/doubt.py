"""What a user's events cannot tell any more once earlier ones are gone from the log.

An event that the log still holds may repeat the id of one that is gone: it did not count then, and
what is left of the log cannot know. Ids are compared with a user's last `EVENT_IDS`, so this ends
soon behind the front of the log. Nothing else of an event is ever in doubt.
"""

from pipeline.verification.changelog import Row
from pipeline.verification.oracle import PartitionLog, UserHistory
from state.row import EVENT_IDS

IDS_IN_DOUBT = 3 * EVENT_IDS
"""After so many ids, each for the first time, a stream's last ids are those of the log.

At most `EVENT_IDS` of them repeat ids that are gone, as many others push those out, and once more
as many push out what came between.
"""


def doubtful_count(history: UserHistory) -> int:
    """Return how many of a user's first events may be repeats of gone ones, or lie among such."""
    places = [place for place, event_id in enumerate(history.event_ids) if event_id]
    ids = [history.event_ids[place] for place in places[:IDS_IN_DOUBT]]
    if not ids:
        return len(history) if history.repeats else 0
    if len(ids) < IDS_IN_DOUBT or len(set(ids)) < len(ids):
        return len(history)
    last = places[IDS_IN_DOUBT - 1]
    is_repeated = bool(history.repeats) and history.repeats[0] <= history.offsets[last]
    return len(history) if is_repeated else last + 1


def most_lacking(history: UserHistory, row: Row) -> int:
    """Return how many of a user's first events a row may lack since an older row was deleted."""
    return len(history) if row.reborn else history.deletable


def least_count(history: UserHistory, first: int, reached: int) -> int:
    """Return how many of the events first..reached-1 counted, whatever came before them.

    Every event without an id did, and one of every id: that in the log, or the one it repeats.
    """
    events = history.event_ids[first:reached]
    ids = [event_id for event_id in events if event_id]
    return len(events) - len(ids) + len(set(ids))


def due_count(history: UserHistory, log: PartitionLog, row: Row | None) -> int:
    """Return how many of a user's events must have been applied and answered by now.

    Behind a row the stream takes an event for a repeat by the ids that the row has.
    """
    due = history.count_below(log.committed)
    if row is not None and (log.lacks_events or most_lacking(history, row)):
        ids = set(row.head["event_ids"].tolist()) - {0}
        reached = history.count_up_to(row.offset)
        while due > reached and history.event_ids[due - 1] in ids:
            due -= 1
    return due
