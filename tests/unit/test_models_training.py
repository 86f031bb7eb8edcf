"""Training on a world of a few items: what it learns, when it stops, how it goes on."""

import functools
import itertools
import math
import resource
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import torch
from torch import Tensor

from models.config import ModelConfig, TrainingConfig
from models.evaluation import Holdout, evaluate
from models.packing import Indices, TrainingWindows
from models.processes import Processes
from models.recommender import Recommender
from models.training import run as training_run
from models.training.checkpoint import (
    CheckpointUnwritable,
    ResumeMismatch,
    read_training_checkpoint,
    write_training_checkpoint,
)
from models.training.result import TrainingDiverged, TrainingProgress, TrainResult, Validation
from models.training.run import STEPS_UNREAD, TrainingRun
from models.training.step import create_optimizer
from models.training.train import train
from tests.devices import on_each_device

N_ITEMS = 30
CONFIG = ModelConfig(n_items=N_ITEMS, hidden_size=16, state_size=8, n_blocks=1, max_length=8)
CPU = torch.device("cpu")
TRAINING = TrainingConfig(batch_size=16, learning_rate=0.02, max_epochs=3, seed=7)


def walks(users: int, seed: int = 0) -> list[Indices]:
    """Let every user walk around a ring of items, one further each time, from a random start."""
    generator = np.random.default_rng(seed)
    return [
        (generator.integers(N_ITEMS) + np.arange(generator.integers(1, 25))) % N_ITEMS + 1
        for _ in range(users)
    ]


SEQUENCES = walks(60)
VALIDATION = Holdout([np.array([item]) for item in range(1, N_ITEMS)], np.arange(2, N_ITEMS + 1))
OTHER_DATA = "it learned from other interactions$"


class Interruption(Exception):
    """Stands for whatever ends a process in the middle."""


def weights(recommender: Recommender) -> dict[str, bytes]:
    """Return every parameter's bytes."""
    return {name: p.cpu().numpy().tobytes() for name, p in recommender.state_dict().items()}


def outcome(result: TrainResult) -> tuple[dict[str, bytes], list[Validation]]:
    """Return all of a result that does not depend on the clock."""
    return weights(result.recommender), [replace(made, seconds=0.0) for made in result.history]


@on_each_device
def test_it_learns_what_follows_what(device: torch.device) -> None:
    """On a ring of items the next one is ranked first for nearly everyone, and the loss falls."""
    training = replace(TRAINING, max_epochs=12, patience=12)

    result = train(CONFIG, training, SEQUENCES, VALIDATION, device=device)

    assert result.recommender.item_bias.device.type == device.type
    assert result.history[-1].metrics["recall@1"] > 0.9
    assert result.history[-1].loss < 0.3 * result.history[0].loss
    assert (result.stopped_by, result.epochs) == ("epochs", 12)


def test_the_best_validation_gives_the_weights() -> None:
    """What comes back ranks exactly as the best line of the history says, dropout off."""
    training = replace(TRAINING, learning_rate=0.3, validate_every_steps=1)

    result = train(CONFIG, training, SEQUENCES, VALIDATION)

    recalls = [made.metrics["recall@10"] for made in result.history]
    assert recalls[-1] < max(recalls), "the case is pointless if the last weights are the best"
    assert result.metrics["recall@10"] == max(recalls)
    assert result.best_epoch == result.history[recalls.index(max(recalls))].epoch
    assert evaluate(result.recommender, VALIDATION) == result.metrics
    assert not result.recommender.training


def test_the_seed_alone_decides() -> None:
    """Same seed, same weights, whatever the global random state, which stays as it was."""
    torch.manual_seed(1)
    first = train(CONFIG, TRAINING, SEQUENCES, VALIDATION)
    state = torch.manual_seed(2).get_state()
    second = train(CONFIG, TRAINING, SEQUENCES, VALIDATION)
    other = train(CONFIG, replace(TRAINING, seed=8), SEQUENCES, VALIDATION)

    assert torch.get_rng_state().equal(state)
    assert outcome(first) == outcome(second)
    assert outcome(first) != outcome(other)


@pytest.mark.parametrize(
    "changes",
    [
        {},
        {"validate_every_steps": 3},
        {"validate_every_steps": 3, "ema_decay": 0.9},
        {"validate_every_steps": 3, "sampled_negatives": 10},
        {"precision": "bf16"},
        {
            "validate_every_steps": 2,
            "patience": 2,
            "max_epochs": 100,
            "learning_rate": 0.1,
            "ema_decay": 0.5,
            "sampled_negatives": 10,
        },
    ],
    ids=[
        "each epoch",
        "within epochs",
        "averaged",
        "sampled",
        "bf16",
        "stopping early with all of it",
    ],
)
@pytest.mark.parametrize("interrupted_at", [[1], [5], [6, 5, 4]])
@on_each_device
def test_an_interrupted_training_ends_as_an_uninterrupted_one(
    tmp_path: Path, changes: dict[str, Any], interrupted_at: list[int], device: torch.device
) -> None:
    """Killed at any steps and called again, it gives the same weights and history bit for bit."""
    training = replace(TRAINING, **changes)
    run = functools.partial(train, CONFIG, training, SEQUENCES, VALIDATION, device=device)
    expected = run()
    assert (expected.stopped_by == "patience") == ("patience" in changes)
    path = tmp_path / "checkpoint.pt"

    for last in interrupted_at:
        left = last

        def interrupt(progress: TrainingProgress) -> None:
            nonlocal left
            left -= 1
            if left == 0:
                raise Interruption

        with pytest.raises(Interruption):
            run(progress=interrupt, checkpoint_path=path)
    result = run(checkpoint_path=path)

    assert outcome(result) == outcome(expected)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]


def test_biases_and_layer_norms_are_not_decayed() -> None:
    """Without a gradient a step shrinks weights and eigenvalues' logarithms alone, as published."""
    recommender = Recommender(CONFIG, torch.Generator().manual_seed(0))
    before = {name: value.detach().clone() for name, value in recommender.named_parameters()}
    for parameter in recommender.parameters():
        parameter.grad = torch.zeros_like(parameter)

    create_optimizer(recommender, replace(TRAINING, learning_rate=0.5, weight_decay=0.1)).step()

    for name, value in recommender.named_parameters():
        kept = 1.0 if name.endswith(("bias", "bias_1", "bias_2", "norm.weight")) else 0.95
        torch.testing.assert_close(value.detach(), kept * before[name], msg=name)
    assert torch.all(before["blocks.0.lru.nu_log"] != recommender.blocks[0].lru.nu_log)


def test_a_finished_training_is_not_trained_again(tmp_path: Path) -> None:
    """With its checkpoint at hand the result is read; more epochs go on from it."""
    path, steps = tmp_path / "checkpoint.pt", []
    expected = train(CONFIG, TRAINING, SEQUENCES, VALIDATION, checkpoint_path=path)

    again = train(
        CONFIG, TRAINING, SEQUENCES, VALIDATION, checkpoint_path=path, progress=steps.append
    )
    longer = train(
        CONFIG, replace(TRAINING, max_epochs=4), SEQUENCES, VALIDATION, checkpoint_path=path
    )

    assert steps == []
    assert outcome(again) == outcome(expected)
    assert longer.history[:3] == expected.history
    assert len(longer.history) == 4


def test_averaged_weights_are_what_is_validated_and_kept() -> None:
    """The steps are those of a training without the average; every validation is of the average."""
    training = replace(TRAINING, validate_every_steps=1, max_epochs=1, patience=100)
    losses: dict[bool, list[float]] = {}
    results: dict[bool, TrainResult] = {}

    for averaged in (False, True):
        steps: list[TrainingProgress] = []
        results[averaged] = train(
            CONFIG,
            replace(training, ema_decay=0.9 if averaged else None),
            SEQUENCES,
            VALIDATION,
            progress=steps.append,
        )
        losses[averaged] = [progress.loss for progress in steps]

    plain, averaged_result = results[False], results[True]
    assert losses[True] == losses[False]
    assert averaged_result.history[0].metrics == plain.history[0].metrics
    assert weights(averaged_result.recommender) != weights(plain.recommender)
    assert evaluate(averaged_result.recommender, VALIDATION) == averaged_result.metrics


def test_a_decay_of_nothing_keeps_the_weights_themselves() -> None:
    """An average that forgets at once is the weights bit for bit."""
    plain = train(CONFIG, TRAINING, SEQUENCES, VALIDATION)
    averaged = train(CONFIG, replace(TRAINING, ema_decay=0.0), SEQUENCES, VALIDATION)

    assert outcome(averaged) == outcome(plain)


@on_each_device
def test_it_learns_against_a_sample_of_the_items(device: torch.device) -> None:
    """Ten draws of thirty items a step: the next item is ranked first for nearly everyone too."""
    training = replace(TRAINING, max_epochs=12, patience=12, sampled_negatives=10)

    result = train(CONFIG, training, SEQUENCES, VALIDATION, device=device)

    assert result.recommender.item_bias.device.type == device.type
    assert result.history[-1].metrics["recall@1"] > 0.9


def test_every_step_draws_anew() -> None:
    """Within an epoch and in the next one no two samples are the same; the seed decides them."""
    windows = TrainingWindows.cut(SEQUENCES, CONFIG.max_length)

    def drawn(seed: int) -> list[list[int]]:
        training = replace(TRAINING, sampled_negatives=10, seed=seed)
        run = TrainingRun(
            CONFIG,
            training,
            windows,
            VALIDATION,
            mask_window=True,
            checkpoint_path=None,
            processes=Processes(),
            device=CPU,
        )
        samples = []
        for run.epoch, run.step in ((0, 0), (0, 1), (1, 0), (1, 1)):
            negatives = run.draw_negatives()
            assert negatives is not None
            samples.append(negatives.items.tolist())
        return samples

    first = drawn(seed=7)

    assert all(one != other for one, other in itertools.combinations(first, 2))
    assert drawn(seed=7) == first
    assert drawn(seed=8) != first


def test_a_catalogue_no_larger_than_the_sample_is_scored_whole() -> None:
    """As many draws as items are the full loss, bit for bit; one less is not."""
    full = train(CONFIG, TRAINING, SEQUENCES, VALIDATION)
    enough, less = (
        train(CONFIG, replace(TRAINING, sampled_negatives=draws), SEQUENCES, VALIDATION)
        for draws in (N_ITEMS, N_ITEMS - 1)
    )

    assert outcome(enough) == outcome(full)
    assert outcome(less) != outcome(full)


@pytest.mark.parametrize(
    ("changes", "message"),
    [
        (
            {"training": replace(TRAINING, learning_rate=0.5)},
            r"training\.learning_rate: expected 0\.5",
        ),
        ({"training": replace(TRAINING, ema_decay=0.9)}, r"training\.ema_decay: expected 0\.9"),
        (
            {"training": replace(TRAINING, sampled_negatives=9)},
            r"training\.sampled_negatives: expected 9, got None$",
        ),
        ({"config": replace(CONFIG, dropout=0.1)}, r"model\.dropout: expected 0\.1, got 0"),
        ({"config": replace(CONFIG, n_items=N_ITEMS + 1)}, OTHER_DATA),
        ({"sequences": walks(60, seed=1)}, OTHER_DATA),
        ({"validation": Holdout(VALIDATION.histories, VALIDATION.targets[::-1])}, OTHER_DATA),
        ({"mask_window": False}, r"recommend\.exclude_seen: expected False, got True$"),
    ],
    ids=[
        "other training",
        "an average",
        "a sample",
        "other model",
        "other items",
        "other sequences",
        "other targets",
        "other protocol",
    ],
)
def test_a_checkpoint_of_another_training_is_refused(
    tmp_path: Path, changes: dict[str, object], message: str
) -> None:
    """The message names the file and what differs."""
    path = tmp_path / "checkpoint.pt"
    arguments = {
        "config": CONFIG,
        "training": TRAINING,
        "sequences": SEQUENCES,
        "validation": VALIDATION,
    }
    train(**arguments, checkpoint_path=path)

    with pytest.raises(ResumeMismatch, match=rf"checkpoint.pt is of another training: {message}"):
        train(**(arguments | changes), checkpoint_path=path)


@pytest.mark.parametrize("content", [None, 5, {"best": 1}, {"identity": 5}, {"identity": "ab"}])
def test_a_file_that_is_no_checkpoint_is_refused(tmp_path: Path, content: object) -> None:
    """Whatever torch makes of the bytes, the error names the file."""
    path = tmp_path / "checkpoint.pt"
    if content is None:
        path.write_bytes(b"not a checkpoint")
    else:
        torch.save(content, path)

    with pytest.raises(ResumeMismatch, match=r"checkpoint.pt is no training checkpoint"):
        train(CONFIG, TRAINING, SEQUENCES, VALIDATION, checkpoint_path=path)


def test_a_time_budget_ends_it_with_the_best_so_far() -> None:
    """It stops within a step and a validation of the budget, in the middle of epochs."""
    training = replace(TRAINING, max_epochs=10**6, patience=10**6, time_budget_s=0.1)

    result = train(CONFIG, training, SEQUENCES, VALIDATION)

    assert result.stopped_by == "time"
    assert result.seconds < 5
    assert result.metrics == evaluate(result.recommender, VALIDATION)


def test_patience_ends_it_when_nothing_gets_better() -> None:
    """Three validations in a row without a better Recall@10 are the last three."""
    training = replace(TRAINING, max_epochs=1000, patience=3)

    result = train(CONFIG, training, SEQUENCES, VALIDATION)

    best = max(made.metrics["recall@10"] for made in result.history)
    assert result.stopped_by == "patience"
    assert result.history[-4].metrics["recall@10"] == best
    assert result.best_epoch == len(result.history) - 3


def test_a_validation_in_the_middle_of_an_epoch_closes_the_last_steps() -> None:
    """Steps behind the last regular validation are validated at the end too."""
    training = replace(TRAINING, max_epochs=1, validate_every_steps=4)
    steps: list[TrainingProgress] = []

    result = train(CONFIG, training, SEQUENCES, VALIDATION, progress=steps.append)

    assert steps[-1].steps % 4, "the case is pointless if the last step is a multiple of four"
    assert [made.step for made in result.history] == [*range(4, len(steps), 4), len(steps)]
    assert {made.epoch for made in result.history} == {1}


def test_progress_counts_epochs_and_steps() -> None:
    """One call a step, numbered from 1 within each epoch, with the figures of a bar."""
    seen: list[TrainingProgress] = []

    result = train(
        CONFIG, replace(TRAINING, max_epochs=2), SEQUENCES, VALIDATION, progress=seen.append
    )

    steps = seen[0].steps
    assert [(p.epoch, p.step) for p in seen] == [(e, s + 1) for e in (1, 2) for s in range(steps)]
    assert {(p.epochs, p.steps) for p in seen} == {(2, steps)}
    assert all(p.loss > 0 and p.samples_per_s > 0 for p in seen)
    assert [p.best_recall for p in seen[:steps]] == [None] * steps
    assert {p.best_recall for p in seen[steps:]} == {result.history[0].metrics["recall@10"]}


def test_a_loss_that_is_no_number_ends_it() -> None:
    """A step size beyond reason is an error that says where, not a model."""
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) in epoch 1, step \d"):
        train(CONFIG, replace(TRAINING, learning_rate=1e30), SEQUENCES, VALIDATION)


def test_a_loss_read_after_its_epoch_is_told_by_its_own_place(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The last step of the first epoch, read two steps later."""
    steps = TrainingWindows.cut(SEQUENCES, CONFIG.max_length).batch_count(TRAINING.batch_size)
    taken = itertools.count(1)

    def take_gradient(*_: object) -> Tensor:
        return torch.tensor(math.nan if next(taken) == steps else 1.0)

    monkeypatch.setattr(training_run, "take_gradient", take_gradient)
    monkeypatch.setitem(STEPS_UNREAD, "cpu", steps + 1)

    with pytest.raises(TrainingDiverged, match=f"the loss is nan in epoch 1, step {steps}$"):
        train(
            CONFIG,
            replace(TRAINING, max_epochs=4, validate_every_steps=10**6),
            SEQUENCES,
            VALIDATION,
        )


@pytest.mark.parametrize(
    "changes", [{}, {"validate_every_steps": 3, "ema_decay": 0.9}], ids=["epochs", "within epochs"]
)
def test_losses_read_in_blocks_come_to_the_same(
    monkeypatch: pytest.MonkeyPatch, changes: dict[str, Any]
) -> None:
    """Where a GPU is not waited for at every step, history and weights stay as they are."""
    training = replace(TRAINING, max_epochs=4, **changes)
    expected = train(CONFIG, training, SEQUENCES, VALIDATION)
    losses: list[float] = []

    monkeypatch.setitem(STEPS_UNREAD, "cpu", 3)
    result = train(
        CONFIG,
        training,
        SEQUENCES,
        VALIDATION,
        progress=lambda progress: losses.append(progress.loss),
    )
    with pytest.raises(TrainingDiverged, match=r"the loss is (nan|inf) in epoch 1, step [234]"):
        train(CONFIG, replace(training, learning_rate=1e30), SEQUENCES, VALIDATION)

    assert outcome(result) == outcome(expected)
    assert len(set(losses)) < len(losses)


@pytest.mark.parametrize(
    ("sequences", "validation", "message"),
    [
        pytest.param([[], []], VALIDATION, "at least one item, got none", id="no items"),
        pytest.param([[1, 31]], VALIDATION, "indices up to 30, got 31", id="an unknown item"),
        pytest.param(
            [[1, 2]], Holdout([], np.empty(0, np.int64)), "one user", id="nobody held out"
        ),
    ],
)
def test_unusable_data_is_refused(
    sequences: list[list[int]], validation: Holdout, message: str
) -> None:
    """What cannot be trained on, or validated, is said before or at the first validation."""
    with pytest.raises(ValueError, match=message):
        train(CONFIG, TRAINING, sequences, validation)


def test_a_file_system_that_takes_nothing_at_all_is_one_clear_error(tmp_path: Path) -> None:
    """Not even what was begun can be removed there, as on one that was made read-only."""
    (tmp_path / "file").touch()

    with pytest.raises(CheckpointUnwritable, match=r"file/checkpoint.pt: the training checkpoint"):
        write_training_checkpoint(tmp_path / "file" / "checkpoint.pt", {}, {})


def test_a_disk_that_takes_no_more_leaves_the_old_checkpoint(tmp_path: Path) -> None:
    """What was resumable before still is, and the error says which file and why."""
    path = tmp_path / "checkpoint.pt"
    identity: dict[str, object] = {"of": "a test"}
    write_training_checkpoint(path, identity, {"weights": torch.zeros(4)})
    limit = resource.getrlimit(resource.RLIMIT_FSIZE)

    resource.setrlimit(resource.RLIMIT_FSIZE, (2**16, limit[1]))
    try:
        with pytest.raises(CheckpointUnwritable, match=r"checkpoint.pt: the training checkpoint"):
            write_training_checkpoint(path, identity, {"weights": torch.zeros(2**20)})
    finally:
        resource.setrlimit(resource.RLIMIT_FSIZE, limit)

    kept = read_training_checkpoint(path, identity)
    assert kept["weights"].shape == (4,)
    assert [p.name for p in tmp_path.iterdir()] == ["checkpoint.pt"]
