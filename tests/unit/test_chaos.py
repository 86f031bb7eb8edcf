"""The chaos suite's own parts: what its runs rest on."""

import random
from dataclasses import dataclass
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st

from tests.benchmarks.stock_faust.row import UserRow
from tests.chaos.kinds import order_of
from tests.chaos.scenarios import SCENARIOS, Do

PAGE = Path(__file__).parents[2] / "docs" / "chaos.md"


@dataclass
class Output:
    """A recommendation as it is read."""

    partition: int
    key: bytes
    timestamp: int
    value: bytes


def output(user: str, offset: int, at_ms: int) -> Output:
    return Output(0, user.encode(), at_ms, b'{"event": {"offset": %d}}' % offset)


@pytest.mark.parametrize("name", SCENARIOS)
def test_a_seed_decides_the_steps(name: str) -> None:
    """What failed can be played again."""
    steps = SCENARIOS[name].steps

    assert list(steps(random.Random(5))) == list(steps(random.Random(5)))
    assert list(steps(random.Random(5))) != list(steps(random.Random(6)))


@pytest.mark.parametrize("name", SCENARIOS)
def test_every_scenario_stands_in_the_document(name: str) -> None:
    """With what happens in it."""
    assert f"| `{name}` | {SCENARIOS[name].what} |" in PAGE.read_text()


def test_the_short_scenario_has_every_kind_of_step() -> None:
    """Only a stop of Kafka in its order is left out: there is a test of it alone."""
    done = {step.do for step in SCENARIOS["short"].steps(random.Random(0))}

    assert done == set(Do) - {Do.STOP_BROKER}


def test_an_older_output_after_a_newer_one_is_counted() -> None:
    """By user, with the distance and the longest silence of a partition."""
    order = order_of([output("a", 5, 0), output("b", 3, 100), output("a", 2, 1600)])

    assert (order.outputs, order.regressing, order.worst_regress) == (3, 1, 3)
    assert order.worst_pause_s == 1.5


@given(st.lists(st.integers(0, 99), unique=True, min_size=2).map(sorted), st.data())
def test_a_row_tells_lost_and_repeated_events(offsets: list[int], data: st.DataObject) -> None:
    """The guard ignores what is read again; a chain that lacks any event differs."""
    whole = UserRow()
    for offset in offsets:
        whole = whole.after(offset)
    lost = data.draw(st.sampled_from(offsets))

    partial = UserRow()
    for offset in offsets:
        if offset != lost:
            partial = partial.after(offset)

    assert whole.after(offsets[0]) == whole
    assert UserRow.decode(whole.encode()) == whole
    assert (whole.count - partial.count, whole.chain == partial.chain) == (1, False)
