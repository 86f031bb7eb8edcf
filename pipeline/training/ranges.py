"""Which offsets of the interactions topic a training reads."""

from collections.abc import Mapping
from itertools import pairwise

import numpy as np

from models.packing import Indices
from pipeline.cluster.records import end_offsets, first_offsets, offsets_since
from pipeline.settings import Settings

Ranges = Mapping[int, tuple[int, int]]
"""Per partition the first offset to read and the one to stop before."""


def plan_ranges(settings: Settings, now_s: float) -> dict[int, tuple[int, int]]:
    """Return the offsets to train on: all there are, or those inside the trainer's window.

    The last N events are taken from each partition in proportion to what it holds; where both
    windows are set, the narrower one rules, partition by partition.

    Args:
        settings: Cluster, topic and window.
        now_s: Unix time that the window in seconds reaches back from.

    Raises:
        BrokerUnavailable: No answer.
        TopicMismatch: There is no interactions topic.
    """
    kafka, topic, trainer = settings.kafka, settings.topics.interactions, settings.trainer
    first = first_offsets(kafka, topic)
    ends = end_offsets(kafka, topic, committed=True)
    starts = dict(first)
    if trainer.window_events is not None:
        held = np.array([ends[p] - first[p] for p in ends], np.int64)
        shares = proportional(held, trainer.window_events)
        starts = {p: ends[p] - share for p, share in zip(ends, shares.tolist(), strict=True)}
    if trainer.window_s is not None:
        first_ms = max(0, round((now_s - trainer.window_s) * 1000))
        since = offsets_since(kafka, topic, first_ms)
        starts = {p: max(start, since[p]) for p, start in starts.items()}
    return {p: (min(starts[p], ends[p]), ends[p]) for p in ends}


def proportional(held: Indices, total: int) -> Indices:
    """Divide `total` in proportion to what is held; the parts add up to it, or to all there is."""
    if total >= held.sum():
        return held
    # Python's numbers: the products of a large topic are none that 64 bits hold.
    whole = int(held.sum())
    sums = [0, *(so_far * total // whole for so_far in np.cumsum(held).tolist())]
    return np.array([end - start for start, end in pairwise(sums)], np.int64)
