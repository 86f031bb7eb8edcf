"""Several workers that join, leave, die, freeze and lose their disks under load."""

from pathlib import Path

import pytest

from tests.chaos.driver import Run
from tests.chaos.kinds import Ours
from tests.chaos.scenarios import Do

EVENTS_PER_S = 200  # less to judge


@pytest.mark.timeout(600)  # it takes two minutes; a busy machine starts processes slowly
def test_a_storm_of_workers_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Whoever owned what when: in the end every state, offset and answer is what the log says.

    Longer ones: `make chaos SCENARIO=storm MINUTES=20 SEED=11`, and docs/chaos.md.
    """
    outcome = Run("short", Ours(), tmp_path, seed=11, events_per_s=EVENTS_PER_S).play()

    assert outcome.holds, outcome
    assert outcome.judgement is not None
    assert outcome.judgement.events > 5000
    assert {Do.JOIN, Do.LEAVE, Do.KILL, Do.FREEZE, Do.WIPE, Do.KILL_BROKER} <= outcome.done.keys()
    assert outcome.done["froze at rows-sent"] == 1
