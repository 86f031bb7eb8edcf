"""`lrurec verify` cries no wolf, and finds any one fact that is changed."""

import itertools
import tempfile
from dataclasses import replace
from pathlib import Path
from typing import Any

import hypothesis
import numpy as np
import pytest
from hypothesis import strategies as st

from models.release import Release
from pipeline.settings import RecommendSettings, Settings
from pipeline.verification.report import Kind
from tests.verify_world import ITEMS, RING, K, StreamWorld, three_releases, wrong

_EVENT = st.tuples(
    st.integers(0, 1),  # partition
    st.integers(0, 2),  # user
    st.sampled_from([*ITEMS, "unheard-1", "unheard-2"]),
    st.one_of(st.none(), st.sampled_from("abc")),  # event id
)
_STEP = st.tuples(
    st.integers(1, 9),  # records to answer
    st.sampled_from(["", "", "settle", "commit", "kill", "swap-0", "swap-1", "swap-2"]),
)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """Three releases: two of one shape, and one of another with fewer items."""
    return three_releases(tmp_path_factory.mktemp("releases"), fewer_items=5)


def stream(
    releases: list[Release],
    events: list[tuple[int, int, str, str | None]],
    steps: list[tuple[int, str]],
    *,
    exclude_seen: bool,
    starts_empty: bool,
) -> StreamWorld:
    """A stream that was killed, swapped and settled at will, and then read to its end or not."""
    recommend = RecommendSettings(top_k=K, ring=RING, exclude_seen=exclude_seen)
    with tempfile.TemporaryDirectory() as folder:
        world = StreamWorld(
            Path(folder), Settings(recommend=recommend), [] if starts_empty else releases[:1]
        )
    for partition, user, item, event_id in events:
        more = {} if event_id is None else {"event_id": event_id}
        world.click(f"user-{user}", item, partition=partition, **more)
    for size, action in steps:
        for partition in (0, 1):
            world.process(partition, size)
        if action == "kill":
            world.start()
        elif action in ("settle", "commit"):
            world.settle(commit=action == "commit")
        elif action:
            world.announce(releases[int(action[-1])])
    return world


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    events=st.lists(_EVENT, max_size=40),
    steps=st.lists(_STEP, max_size=15),
    exclude_seen=st.booleans(),
    starts_empty=st.booleans(),
)
def test_a_true_stream_is_never_called_wrong(
    releases: list[Release],
    events: list[tuple[int, int, str, str | None]],
    steps: list[tuple[int, str]],
    exclude_seen: bool,
    starts_empty: bool,
) -> None:
    """Whatever is read again, rebuilt or in flight, everything holds, now and at the end."""
    world = stream(releases, events, steps, exclude_seen=exclude_seen, starts_empty=starts_empty)
    assert world.verify().findings == ()

    world.run(5)
    report = world.verify()

    assert report.findings == ()
    assert report.holds
    offsets = report.offsets
    assert offsets.applied + offsets.duplicate == len(events)
    assert report.users == report.rows
    assert offsets.pending == report.states_unverifiable == 0


@hypothesis.settings(max_examples=50, deadline=None)
@hypothesis.given(
    events=st.lists(_EVENT.map(lambda event: (*event[:3], None)), max_size=40),
    steps=st.lists(_STEP, max_size=5),
    removals=st.lists(
        st.tuples(
            st.integers(0, 9),  # records read before it
            st.sampled_from(["interactions", "recommendations", "dead_letters"]),
            st.integers(0, 1),  # partition
            st.integers(1, 8),  # records removed
        ),
        max_size=20,
    ),
)
@hypothesis.example(
    events=[(0, 0, "item-0", None), (0, 0, "item-1", None), (0, 0, "item-2", None)],
    steps=[(1, "swap-2")],
    removals=[(0, "interactions", 0, 2)],
)
def test_what_retention_removes_at_any_time_is_never_called_wrong(
    releases: list[Release],
    events: list[tuple[int, int, str, None]],
    steps: list[tuple[int, str]],
    removals: list[tuple[int, str, int, int]],
) -> None:
    """Before, within or between its reads of the topics, once or at each."""
    world = stream(releases, [*events], steps, exclude_seen=True, starts_empty=False)
    for partition, _, _, _ in events[:10]:
        world.junk(b"{", partition=partition)
    world.run(5)
    topics, left = world.topics, list(removals)
    passed = 0

    def pass_by() -> None:
        nonlocal passed
        passed += 1
        while left and left[0][0] < passed:
            _, kind, partition, count = left.pop(0)
            name, passed = getattr(world.names, kind), 0
            end = topics.end_offsets(name)[partition]
            topics.trim(name, partition, min(end, topics.first_offsets(name)[partition] + count))

    topics.on_record, topics.on_read = lambda record: pass_by(), lambda topic: pass_by()

    assert world.verify().findings == ()
    assert world.verify().findings == ()


@hypothesis.settings(max_examples=100, deadline=None)
@hypothesis.given(
    changed=st.dictionaries(
        st.sampled_from(["topic", "partition", "offset", "reason", "timestamp-ms", "value-sha256"]),
        st.one_of(st.none(), st.binary(), st.integers(-1, 2**70).map(lambda n: b"%d" % n)),
    )
)
def test_no_headers_of_a_letter_end_it(changed: dict[str, Any]) -> None:
    """Whoever may write the topic may write anything there, a header without a value too."""
    with tempfile.TemporaryDirectory() as folder:
        world = StreamWorld(Path(folder), Settings())
    world.junk(b"{")
    world.run()
    log = world.topics.records[world.names.dead_letters, 0]
    assert log[0] is not None
    headers = dict(log[0].headers) | {f"lrurec-{name}": value for name, value in changed.items()}
    log[0] = replace(log[0], headers=tuple(headers.items()))

    assert wrong(world.verify()).keys() <= {Kind.LETTER, Kind.MISSING}


def test_what_unknown_items_push_out_of_the_memory_may_be_listed_again(
    tmp_path: Path, releases: list[Release]
) -> None:
    """Within one batch, too: a list leaves out what is remembered when it is made, no more."""
    recommend = RecommendSettings(top_k=K, ring=RING, exclude_seen=True)
    world = StreamWorld(tmp_path, Settings(recommend=recommend), releases[:1])
    for seen in itertools.permutations("01234567", 2):
        user = "".join(seen)
        world.click_all(user, user)
        for number in range(RING - 1):
            world.click(user, f"unheard-{number}")

    world.run(batch=1000)

    assert wrong(world.verify()) == {}


@hypothesis.settings(max_examples=25, deadline=None)
@hypothesis.given(
    events=st.lists(_EVENT, min_size=1, max_size=20),
    steps=st.lists(_STEP, max_size=5),
    data=st.data(),
)
def test_any_changed_fact_is_found(
    releases: list[Release],
    events: list[tuple[int, int, str, str | None]],
    steps: list[tuple[int, str]],
    data: st.DataObject,
) -> None:
    """No number of a row can be another one without a finding."""
    world = stream(releases, events, steps, exclude_seen=False, starts_empty=False)
    world.run(5)
    partition, user = data.draw(st.sampled_from([(p, f"user-{u}") for p, u, _, _ in events]))
    head, hidden = world.head(user, partition), world.hidden(user, partition).copy()
    names = [name for name in head.dtype.names if name != "started_at"]
    name = data.draw(st.sampled_from([*names, "hidden"]))
    if name == "hidden":
        hidden[tuple(data.draw(st.integers(0, size - 1)) for size in hidden.shape)] += 2e-5
        world.forge_row(user, at=partition, hidden=hidden)
    else:
        value = np.array(head[name]).copy()
        value[tuple(data.draw(st.integers(0, size - 1)) for size in value.shape)] += 1
        world.forge_row(user, at=partition, **{name: value})

    assert not world.verify().holds
