"""What the demo decides by itself: its rate, and settings that disturb nobody."""

import dataclasses
import shlex
from pathlib import Path

import pytest

from models.config import TrainingConfig
from pipeline.commands.demo import _hints
from pipeline.demo.kafka import demo_settings
from pipeline.demo.run import LIVE_RATES, choose_rate
from pipeline.setting_kinds import split_names
from pipeline.settings import Settings


def test_a_hint_can_be_typed_whatever_the_items_are_called() -> None:
    """An id with a comma stays one item, and one with a quote ends no word of the shell."""
    hints = _hints(Path("releases") / "1", ["o'clock", "a, b", "c", "d"])

    [score] = [command for command, _ in hints if " score " in command]
    words = shlex.split(score)
    assert split_names(words[words.index("--history") + 1]) == ("o'clock", "a, b", "c")


@pytest.mark.parametrize(
    ("events", "capacity", "expected"),
    [
        (79_585, 20_000.0, 1000.0),
        (79_585, 1500.0, 500.0),
        (600_000, 30_000.0, 5000.0),
        (600, 20_000.0, 50.0),
        (600_000, 10.0, 50.0),
        (0, 0.0, 50.0),
    ],
    ids=["bundled", "slow machine", "large file", "small file", "far too slow", "nothing"],
)
def test_the_live_part_takes_a_minute_and_half_of_what_the_worker_can_do(
    events: int, capacity: float, expected: float
) -> None:
    """So much that there is something to see, and not so much that events pile up."""
    assert choose_rate(events, capacity) == expected
    assert expected in LIVE_RATES


def test_a_demo_shares_no_folder_and_no_port_with_a_broker_or_worker_of_its_user() -> None:
    """What is at its default belongs to the user; the demo has other folders and free ports."""
    user = Settings()

    own = demo_settings(user, Path("demo"), time_budget_s=150.0)

    folders = {own.broker.data_dir, own.worker.data_dir, own.trainer.releases_dir}
    assert len(folders) == 3
    assert all(folder.parent == Path("demo") for folder in folders)
    assert own.broker.port == 0
    assert own.metrics.port not in (0, user.metrics.port)
    assert own.training.time_budget_s == 150.0
    assert own.topics == user.topics


def test_a_time_for_training_that_was_asked_for_is_kept() -> None:
    """So are threads of the worker and everything about the model and the fields."""
    user = Settings(training=TrainingConfig(time_budget_s=7.0))
    user = dataclasses.replace(user, worker=dataclasses.replace(user.worker, threads=3))

    own = demo_settings(user, Path("demo"), time_budget_s=150.0)

    assert own.training.time_budget_s == 7.0
    assert own.worker.threads == 3
    assert (own.model, own.fields) == (user.model, user.fields)
