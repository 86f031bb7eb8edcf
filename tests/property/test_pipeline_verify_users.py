"""`lrurec verify` with commands about users, sent and heard at any time."""

import tempfile
from pathlib import Path
from typing import Any

import hypothesis
import pytest
from hypothesis import strategies as st

from models.release import Release
from pipeline.settings import RecommendSettings, Settings
from pipeline.verification.commands import HEARD_WITHIN_MS
from tests.verify_world import ITEMS, PARTITIONS, RING, K, StreamWorld, three_releases

START_MS = 1_700_000_000_000
MINUTE_MS = 60_000
LATE_MS = [0, 0, 3 * MINUTE_MS, 60 * MINUTE_MS]

_USER = st.integers(0, 2)
_CLICK = st.tuples(
    st.just("click"),
    st.sampled_from(PARTITIONS),
    _USER,
    st.sampled_from([*ITEMS, "unheard"]),
    st.one_of(st.none(), st.sampled_from("abc")),  # event id
    st.sampled_from(LATE_MS),
)
_TELL = st.tuples(
    st.just("tell"),
    st.sampled_from(PARTITIONS),
    _USER,
    st.one_of(st.none(), st.sampled_from(LATE_MS)),  # how long ago what is forgotten ends
    st.sets(st.sampled_from(ITEMS), max_size=6),
)
_REST = st.tuples(
    st.sampled_from(["process", "settle", "commit", "kill", "hear", "wait", "sleep", "verify"])
)
_STEPS = st.lists(st.one_of(_CLICK, _CLICK, _CLICK, _REST, _REST, _TELL), max_size=40)


@pytest.fixture(scope="module")
def releases(tmp_path_factory: pytest.TempPathFactory) -> list[Release]:
    """Three releases."""
    return three_releases(tmp_path_factory.mktemp("releases"), fewer_items=5)


class ToldWorld:
    """A stream that hears what it is told in time, and what is known of it beside `verify`."""

    def __init__(self, releases: list[Release], *, exclude_seen: bool) -> None:
        recommend = RecommendSettings(top_k=K, ring=RING, exclude_seen=exclude_seen)
        with tempfile.TemporaryDirectory() as folder:
            self.world = StreamWorld(Path(folder), Settings(recommend=recommend), releases[:1])
        self.now_ms = self.world.topics.now_ms = START_MS
        self.events: list[tuple[str, int, int]] = []  # user, when it happened, when it was recorded
        self.rules: dict[tuple[str, int], list[int]] = {}  # by user and partition
        self.unsettled_ms: list[int] = []

    def do(self, action: str, *args: Any) -> None:
        """Take a step."""
        world = self.world
        if action == "click":
            self.click(*args)
        elif action == "tell":
            self.tell(*args)
        elif action == "process":
            for partition in PARTITIONS:
                world.process(partition, 3)
        elif action in ("settle", "commit"):
            self.settle(commit=action == "commit")
        elif action == "kill":
            world.start()
        elif action == "hear":
            world.hear()
        elif action == "wait":
            self.wait(4 * MINUTE_MS)
        elif action == "sleep":
            self.wait(30 * MINUTE_MS)
        else:
            assert world.verify().findings == ()

    def click(
        self, partition: int, user: int, item: str, event_id: str | None, late_ms: int
    ) -> None:
        """Have something happen."""
        time_ms = self.now_ms - late_ms
        more = {} if event_id is None else {"event_id": event_id}
        name = f"user-{user}"
        self.world.click(name, item, partition=partition, timestamp_ms=time_ms, **more)
        self.events.append((name, time_ms, self.now_ms))

    def tell(self, partition: int, user: int, ago_ms: int | None, blocked: set[str]) -> None:
        """Send a command; no two of one time."""
        self.now_ms += 1
        self.world.topics.now_ms = self.now_ms
        command: dict[str, Any] = {"blocked_items": sorted(blocked)}
        if ago_ms is not None:
            command["forget_before_ms"] = self.now_ms - ago_ms
        self.world.tell(f"user-{user}", command, partition=partition, heard=False)
        rules = self.rules.setdefault((f"user-{user}", partition), [])
        rules.append(command.get("forget_before_ms", 0))
        self.unsettled_ms.append(self.now_ms)

    def settle(self, *, commit: bool = True) -> None:
        """Take checkpoints, with what was heard."""
        self.world.settle(commit=commit)
        if all(
            self.world.heard[p]
            == len(self.world.topics.records.get((self.world.names.users, p), []))
            for p in PARTITIONS
        ):
            self.unsettled_ms = []

    def wait(self, ms: int) -> None:
        """Let time pass, but no command go unheard for as long as that would be too long."""
        if self.unsettled_ms and min(self.unsettled_ms) + HEARD_WITHIN_MS <= self.now_ms + ms:
            self.world.hear()
            self.settle()
        self.now_ms += ms
        self.world.topics.now_ms = self.now_ms

    def forget_before_ms(self, *, is_compacted: bool) -> dict[str, int]:
        """Up to what time users are to be forgotten, by all commands that are left."""
        before_ms: dict[str, int] = {}
        for (user, _), rules in self.rules.items():
            left = rules[-1:] if is_compacted else rules
            before_ms[user] = max(before_ms.get(user, 0), *left)
        return before_ms


@hypothesis.settings(max_examples=40, deadline=None)
@hypothesis.given(steps=_STEPS, exclude_seen=st.booleans(), is_compacted=st.booleans())
def test_whoever_is_told_of_is_never_called_wrong(
    releases: list[Release], steps: list[tuple[Any, ...]], exclude_seen: bool, is_compacted: bool
) -> None:
    """Whenever a command is heard within its time, and whatever else happens, everything holds."""
    told = ToldWorld(releases, exclude_seen=exclude_seen)
    world = told.world
    for step in steps:
        told.do(*step)
    world.run(3)
    told.wait(30 * MINUTE_MS)
    if is_compacted:
        for topic in (world.changelog, world.names.recommendations, world.names.users):
            compact(world, topic)

    report = world.verify()

    assert report.findings == ()
    assert report.holds
    offsets = report.offsets
    before_ms = told.forget_before_ms(is_compacted=is_compacted)
    forgotten = [min(times) < before_ms.get(user, 0) for user, *times in told.events]
    assert offsets.forgotten == sum(forgotten)
    assert offsets.applied + offsets.duplicate + offsets.forgotten == len(told.events)
    assert offsets.without_record == offsets.missing == offsets.pending == 0
    assert report.users_forgotten == sum(time_ms > 0 for time_ms in before_ms.values())


def compact(world: StreamWorld, topic: str) -> None:
    """Leave the newest record of each key, and no null values."""
    for partition in PARTITIONS:
        log = list(world.topics.records.get((topic, partition), []))
        newest = {record.key: record.offset for record in log if record is not None}
        for record in log:
            if record is None:
                continue
            if record.value is None or newest[record.key] != record.offset:
                world.topics.remove(topic, partition, record.offset)


@hypothesis.settings(max_examples=30, deadline=None)
@hypothesis.given(clicks=st.lists(_CLICK, min_size=1, max_size=20), data=st.data())
def test_a_worker_that_does_not_hear_is_found(
    releases: list[Release], clicks: list[tuple[Any, ...]], data: st.DataObject
) -> None:
    """Who is to be forgotten and is not is found, whoever it is and up to whichever event."""
    told = ToldWorld(releases, exclude_seen=False)
    for step in clicks:
        told.do(*step)
        told.wait(30 * MINUTE_MS)
    told.world.run()
    _, _, user, *_ = data.draw(st.sampled_from(clicks))
    first_ms = min(min(times) for name, *times in told.events if name == f"user-{user}")
    before_ms = data.draw(st.integers(first_ms + 1, told.now_ms))
    told.world.tell(f"user-{user}", {"forget_before_ms": before_ms}, heard=False)
    told.wait(60 * MINUTE_MS)

    report = told.world.verify()

    assert not report.holds
    assert report.unforgotten > 0
    assert all(f"user-{user}" not in str(finding) for finding in report.findings)
