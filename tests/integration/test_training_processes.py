"""Two processes train as one does: same order, same mean, same decisions, one checkpoint."""

import time
from collections.abc import Iterator
from dataclasses import asdict, replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch

from models.config import ModelConfig, TrainingConfig
from models.evaluation import Holdout, evaluate
from models.packing import Indices
from models.processes import Processes, ProcessesDisagree, ProcessLost
from models.recommender import Recommender
from models.training.result import TrainingProgress, TrainResult
from models.training.train import train
from tests.training_processes import Team, team

N_ITEMS = 30
USERS = 65
"""With 16 windows a batch, the last one has a single window: one process has none of it."""
CONFIG = ModelConfig(
    n_items=N_ITEMS, hidden_size=16, state_size=8, max_length=8, dropout=0, lru_dropout=0
)
DROPPING = replace(CONFIG, dropout=0.2, lru_dropout=0.2)
TRAINING = TrainingConfig(batch_size=16, learning_rate=0.01, max_epochs=3, seed=7)
LOSS_RELATIVE = 1e-5
"""Float32 sums of the same terms in other orders, over 15 steps."""
WEIGHT_ABSOLUTE = 1e-3
"""A tenth of one step of AdamW: where a gradient is nearly 0, rounding decides how far it goes."""


def walks(seed: int = 0) -> list[Indices]:
    """Let every user walk around a ring of items, at most one window long, from a random start."""
    generator = np.random.default_rng(seed)
    return [
        (generator.integers(N_ITEMS) + np.arange(generator.integers(1, 16))) % N_ITEMS + 1
        for _ in range(USERS)
    ]


VALIDATION = Holdout([np.array([item]) for item in range(1, N_ITEMS)], np.arange(2, N_ITEMS + 1))


class Interruption(Exception):
    """Stands for whatever ends all processes in the middle."""


def trained(
    processes: Processes,
    config: ModelConfig = CONFIG,
    training: TrainingConfig = TRAINING,
    checkpoints: Path | None = None,
    interrupted_at: int | None = None,
) -> dict[str, Any]:
    """Train; all of the result that does not depend on the clock, and each step's loss.

    Every process has a checkpoint of its own, to tell who writes.
    """
    losses: list[float] = []

    def note(progress: TrainingProgress) -> None:
        losses.append(progress.loss)
        if len(losses) == interrupted_at:
            raise Interruption

    path = None if checkpoints is None else checkpoints / f"{processes.rank}.pt"
    result: TrainResult = train(
        config,
        training,
        walks(),
        VALIDATION,
        progress=note,
        checkpoint_path=path,
        processes=processes,
    )
    return {
        "weights": {name: p.numpy() for name, p in result.recommender.state_dict().items()},
        "history": [asdict(replace(made, seconds=0.0)) for made in result.history],
        "losses": losses,
        "end": (result.epochs, result.stopped_by, result.best_epoch),
    }


def trained_on_other_data(processes: Processes) -> None:
    """Have the second process train on other sequences."""
    train(CONFIG, TRAINING, walks(seed=processes.rank), VALIDATION, processes=processes)


def trained_for_other_times(processes: Processes) -> None:
    """Have the second process stop earlier."""
    training = replace(TRAINING, max_epochs=3 - processes.rank)
    train(CONFIG, training, walks(), VALIDATION, processes=processes)


def evaluated(processes: Processes) -> dict[str, float]:
    """Rank by initial weights."""
    recommender = Recommender(CONFIG, torch.Generator().manual_seed(1))
    return evaluate(recommender, VALIDATION, processes=processes)


def same_bits(one: dict[str, Any], other: dict[str, Any]) -> bool:
    """Tell whether two outcomes of `trained` are the same, the losses of steps left out."""
    return (
        one["history"] == other["history"]
        and one["end"] == other["end"]
        and all(
            one["weights"][name].tobytes() == w.tobytes() for name, w in other["weights"].items()
        )
    )


@pytest.fixture(scope="module")
def pair(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Team]:
    """Two processes for all tests that leave them whole."""
    with team(2, tmp_path_factory.mktemp("pair")) as both:
        yield both


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validate_every_steps": 3, "ema_decay": 0.9},
        {"sampled_negatives": 10},
        {"batch_size": 1, "max_epochs": 1},
        {"validate_every_steps": 1, "patience": 2, "max_epochs": 100, "learning_rate": 0.05},
    ],
    ids=["plain", "averaged", "sampled", "a window a batch", "early stopping"],
)
def test_two_processes_train_as_one_does(pair: Team, changes: dict[str, Any]) -> None:
    """Same losses step by step, same validations, same weights, up to rounding; same end."""
    training = replace(TRAINING, **changes)
    alone = trained(Processes(), training=training)

    first, second = pair.call(trained, CONFIG, training)

    assert same_bits(first, second)
    assert first["losses"] == second["losses"]
    assert first["end"] == alone["end"]
    np.testing.assert_allclose(first["losses"], alone["losses"], rtol=LOSS_RELATIVE)
    for one, other in zip(first["history"], alone["history"], strict=True):
        assert one["step"] == other["step"]
        assert one["metrics"] == pytest.approx(other["metrics"], abs=1 / len(VALIDATION.targets))
    for name, weight in alone["weights"].items():
        np.testing.assert_allclose(
            first["weights"][name], weight, atol=WEIGHT_ABSOLUTE, rtol=0, err_msg=name
        )


def test_each_process_drops_other_activations(pair: Team) -> None:
    """With dropout the processes still agree to the bit, and come to other weights than one."""
    alone = trained(Processes(), DROPPING)

    first, second = pair.call(trained, DROPPING)

    assert same_bits(first, second)
    assert first["losses"][0] != pytest.approx(alone["losses"][0], rel=1e-4)
    assert first["losses"][-1] == pytest.approx(alone["losses"][-1], rel=0.1)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validate_every_steps": 3, "ema_decay": 0.9, "sampled_negatives": 10},
        {"validate_every_steps": 2, "patience": 3, "max_epochs": 100, "learning_rate": 0.05},
    ],
    ids=["plain", "averaged and sampled", "early stopping"],
)
def test_interrupted_processes_end_as_uninterrupted_ones(
    pair: Team, tmp_path: Path, changes: dict[str, Any]
) -> None:
    """Dropout, order and optimizer go on bit for bit, from the one checkpoint of the first."""
    training = replace(TRAINING, **changes)
    (whole, _) = pair.call(trained, DROPPING, training)

    for interrupted_at in (7, 4):
        pair.begin(trained, DROPPING, training, tmp_path, interrupted_at)
        assert [str(type(one.error).__name__) for one in pair.outcomes()] == ["Interruption"] * 2
    first, second = pair.call(trained, DROPPING, training, tmp_path)

    assert same_bits(first, whole)
    assert same_bits(second, whole)
    assert [path.name for path in tmp_path.iterdir()] == ["0.pt"]


def test_one_process_goes_on_from_the_checkpoint_of_two(pair: Team, tmp_path: Path) -> None:
    """The number of processes is no part of a training: the rest is that of one, up to rounding."""
    alone = trained(Processes())
    pair.begin(trained, CONFIG, TRAINING, tmp_path, 8)
    pair.outcomes()

    rest = trained(Processes(), checkpoints=tmp_path)
    pair.call(trained, CONFIG, replace(TRAINING, max_epochs=4), tmp_path)

    assert len(rest["losses"]) == 10
    np.testing.assert_allclose(rest["losses"], alone["losses"][5:], rtol=LOSS_RELATIVE)


def test_the_clock_of_the_first_process_ends_all(pair: Team) -> None:
    """A time budget ends both after the same step, whatever their clocks say."""
    training = replace(TRAINING, max_epochs=10**6, patience=10**6, time_budget_s=0.3)

    first, second = pair.call(trained, CONFIG, training)

    assert same_bits(first, second)
    assert first["end"][1] == "time"


@pytest.mark.parametrize(
    ("function", "message"),
    [
        (trained_on_other_data, "process 1 of 2 has another data than process 0: expected "),
        (trained_for_other_times, "has another max_epochs than process 0: expected 3, got 2"),
    ],
    ids=["data", "settings"],
)
def test_processes_with_different_arguments_do_not_start(
    pair: Team, function: Any, message: str
) -> None:
    """Each of them says what differs, before the first step."""
    pair.begin(function)

    for outcome in pair.outcomes():
        assert isinstance(outcome.error, ProcessesDisagree)
        assert message in str(outcome.error)


def test_users_are_ranked_once_whoever_ranks_them(pair: Team) -> None:
    """Metrics over shares of the users are those of all of them in one process."""
    assert pair.call(evaluated) == [evaluated(Processes())] * 2


def test_a_process_that_dies_ends_the_others(tmp_path: Path) -> None:
    """They do not wait for ever, and say that another one is gone."""
    training = replace(TRAINING, max_epochs=10**6, patience=10**6)
    with team(2, tmp_path) as both:
        both.call(evaluated)  # both are there
        both.begin(trained, CONFIG, training)
        time.sleep(1)
        started = time.monotonic()

        both.members[1][0].kill()
        both.members[1][0].join()
        (outcome,) = both.outcomes()

    assert time.monotonic() - started < 30
    assert isinstance(outcome.error, ProcessLost)
    assert "process 0 of 2: another process of this training ended" in str(outcome.error)
