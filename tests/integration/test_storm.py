"""Several workers that join, leave, die, freeze and lose their disks under load."""

from pathlib import Path

from tests.chaos.driver import play


def test_a_storm_of_workers_loses_and_doubles_nothing(tmp_path: Path) -> None:
    """Whoever owned what when: in the end every state, offset and answer is what the log says.

    A longer one: `make chaos MINUTES=20 SEED=11`.
    """
    storm = play(seed=11, seconds=45, workers=3, folder=tmp_path, restarts=False)

    assert storm.holds, storm
    assert storm.report is not None
    assert storm.report.offsets.applied > 5000
    assert storm.actions["join"] > 2
