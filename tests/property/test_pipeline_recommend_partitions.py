"""One micro-batch of several partitions does what one of each does."""

from typing import Any

import hypothesis
import msgspec
import numpy as np
import pytest
from hypothesis import strategies as st

from pipeline.engine.chunks import Chunk
from pipeline.engine.processor import PartitionResult
from pipeline.worker.served_model import ServedModel
from tests.property.test_pipeline_recommend import (
    ITEMS,
    STATE_TOLERANCE,
    World,
    releases,
)

__all__ = ["releases"]  # a fixture

USERS = [f"user-{number}" for number in range(3)]
BASE_MS = 10**12

_TIME = st.integers(0, 5).map(BASE_MS.__add__)
_EVENT = st.tuples(
    st.just("event"),
    st.integers(0, 1),  # partition
    st.sampled_from(USERS),
    st.sampled_from(ITEMS),
    st.sampled_from([None, "a", "b"]),  # event id
    _TIME,
)
_COMMAND = st.tuples(
    st.just("command"),
    st.sampled_from(USERS),
    st.just(0) | _TIME,  # forget before
    st.lists(st.sampled_from(ITEMS), max_size=3),  # blocked
)
_STEP = (
    _EVENT
    | _EVENT
    | _EVENT
    | _COMMAND
    | st.sampled_from([("read",), ("again",), ("settle",), ("crash",)])
)
OUTRUN = [  # a list left that reflects the last event on the second partition, which is forgotten
    ("event", 0, "user-0", "item-0", None, BASE_MS),
    ("event", 0, "user-2", "item-0", None, BASE_MS),
    ("event", 1, "user-1", "item-0", None, BASE_MS + 1),
    ("event", 1, "user-1", "item-1", None, BASE_MS),
    ("read",),
    ("crash",),
    ("command", "user-1", BASE_MS + 1, []),
    ("again",),
]


def read(world: World, spans: dict[int, tuple[int, int]], *, at_once: bool) -> Any:
    """What came of these records, by partition."""
    chunks = [
        (partition, Chunk(world.log[partition][start:end], start, end))
        for partition, (start, end) in spans.items()
        if start < end
    ]
    results: list[PartitionResult] = []
    for batch in [chunks] if at_once else [[chunk] for chunk in chunks]:
        results += world.processor.process(batch) if batch else []
    return {result.partition: told(result) for result in results}


def told(result: PartitionResult) -> Any:
    """All that does not depend on the clock, nor on how floats are added."""
    lists = []
    for key, value in result.outputs:
        made = None if value is None else msgspec.json.decode(value)
        if made is not None:
            made["items"] = [item["item_id"] for item in made["items"]]
            del made["emitted_at_ms"]
        lists.append((key, made))
    return sorted(lists, key=str), result.newest_offset, sorted(result.record_ms.tolist())


@pytest.mark.parametrize("transactional", [False, True])
@pytest.mark.parametrize("exclude_seen", [False, True])
@hypothesis.example(story=OUTRUN)
@hypothesis.given(story=st.lists(_STEP, max_size=30))
def test_partitions_in_one_batch_are_answered_as_each_alone(
    releases: list[ServedModel],
    exclude_seen: bool,
    transactional: bool,
    story: list[tuple[Any, ...]],
) -> None:
    """Whatever is repeated, lost, forgotten or blocked: the same lists, rows and offsets."""
    together, alone = (
        World(releases[0], exclude_seen=exclude_seen, transactional=transactional) for _ in range(2)
    )
    at = {0: 0, 1: 0}
    for number, (kind, *of) in enumerate([*story, ("read",), ("settle",)]):
        if kind in ("read", "again"):
            spans = {
                partition: (0 if kind == "again" else at[partition], len(together.log[partition]))
                for partition in (0, 1)
            }
            at = {partition: end for partition, (_, end) in spans.items()}
            assert read(together, spans, at_once=True) == read(alone, spans, at_once=False)
        for world in (together, alone):
            if kind == "event":
                partition, user, item, event_id, time_ms = of
                world.produce(
                    partition, user, item, event_id, timestamp_ms=time_ms, record_ms=time_ms
                )
            elif kind == "command":
                user, before_ms, blocked = of
                world.command(user, number, forget_before_ms=before_ms, blocked_items=blocked)
            elif kind == "settle":
                world.settle()
            elif kind == "crash":
                world.start()

    rows, expected = together.rows(), alone.rows()
    assert rows.keys() == expected.keys()
    for place, (head, hidden) in rows.items():
        assert head.tobytes() == expected[place][0].tobytes()
        np.testing.assert_allclose(hidden, expected[place][1], atol=STATE_TOLERANCE)
