"""Configurations refuse what makes no model."""

import subprocess
import sys
from dataclasses import FrozenInstanceError

import pytest

from models.config import ModelConfig, TrainingConfig


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("n_items", 0, "n_items must be at least 1, got 0"),
        ("hidden_size", 0, "hidden_size must be at least 1, got 0"),
        ("state_size", -1, "state_size must be at least 1, got -1"),
        ("n_blocks", 0, "n_blocks must be at least 1, got 0"),
        ("max_length", 1, "max_length must be at least 2, got 1"),
        ("n_items", 10**15, "n_items must be at most 2147483646, got 1000000000000000"),
        ("hidden_size", 10**30, "hidden_size must be at most 65536, got 10"),
        ("state_size", 2**62, "state_size must be at most 131072, got 4611686018427387904"),
        ("n_blocks", 20_000, "n_blocks must be at most 1000, got 20000"),
        ("max_length", 10**6, "max_length must be at most 100000, got 1000000"),
        ("dropout", 1.0, r"dropout must be in \[0, 1\), got 1.0"),
        ("lru_dropout", float("nan"), r"lru_dropout must be in \[0, 1\), got nan"),
    ],
)
def test_a_model_config_names_the_broken_rule(field: str, value: float, rule: str) -> None:
    """Field, rule and value stand in the message."""
    with pytest.raises(ValueError, match=rule):
        ModelConfig(**{"n_items": 1, field: value})  # type: ignore[arg-type]  # wrong by intent


@pytest.mark.parametrize(
    ("field", "value", "rule"),
    [
        ("batch_size", 0, "batch_size must be at least 1, got 0"),
        ("max_epochs", 0, "max_epochs must be at least 1, got 0"),
        ("patience", 0, "patience must be at least 1, got 0"),
        ("seed", -1, r"seed must be at least 0 and below 2\^63, got -1"),
        ("seed", 2**63, r"seed must be at least 0 and below 2\^63, got 9223372036854775808"),
        ("weight_decay", float("inf"), "weight_decay must be at least 0, got inf"),
        ("learning_rate", 0.0, "learning_rate must be positive and finite, got 0.0"),
        ("adam_epsilon", float("nan"), "adam_epsilon must be positive and finite, got nan"),
        ("clip_norm", float("inf"), "clip_norm must be positive and finite, got inf"),
        ("time_budget_s", 0.0, "time_budget_s must be positive and finite, got 0.0"),
        ("ema_decay", 1.0, r"ema_decay must be in \[0, 1\), got 1.0"),
        ("ema_decay", -0.1, r"ema_decay must be in \[0, 1\), got -0.1"),
        ("sampled_negatives", 0, "sampled_negatives must be at least 1, got 0"),
        ("validate_every_steps", 0, "validate_every_steps must be at least 1, got 0"),
        ("precision", "fp16", "precision must be fp32 or bf16, got fp16"),
    ],
)
def test_a_training_config_names_the_broken_rule(field: str, value: object, rule: str) -> None:
    """Field, rule and value stand in the message."""
    with pytest.raises(ValueError, match=rule):
        TrainingConfig(**{field: value})  # type: ignore[arg-type]  # wrong by intent


def test_configs_are_frozen() -> None:
    """A config that a model was made with cannot change behind its back."""
    with pytest.raises(FrozenInstanceError):
        ModelConfig(n_items=1).n_items = 2  # type: ignore[misc]  # wrong by intent


def test_reading_a_config_loads_no_tensor_library() -> None:
    """Commands that only need settings start in a fraction of the time that torch takes."""
    code = (
        "import sys, models.config, models.errors, models.vocabulary; print('torch' in sys.modules)"
    )

    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True)

    assert done.stdout.strip() == "False"
