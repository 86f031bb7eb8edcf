"""A made-up world with one clear rule: whoever took an item takes the next one of a ring."""

import dataclasses
import random

import msgspec

from models.config import TrainingConfig
from pipeline.cluster.topics import create_topics
from pipeline.settings import ModelSettings, Settings
from tests.kafka import send

N_ITEMS = 40
QUICK = TrainingConfig(batch_size=16, learning_rate=0.02, max_epochs=12, patience=12, seed=3)
"""A second or two on the events of `send_walks`; finds the rule."""
USELESS = dataclasses.replace(QUICK, learning_rate=1e-9, max_epochs=1)
"""Keeps the random weights."""


def item(place: int) -> str:
    return f"item-{place % N_ITEMS}"


def walks(users: int, seed: int = 0) -> list[tuple[str, list[str]]]:
    """Users and their items: a walk around the ring from a random start, 3 to 12 steps."""
    draw = random.Random(seed)
    return [
        (f"user-{seed}-{user}", [item(start + i) for i in range(draw.randint(3, 12))])
        for user in range(users)
        for start in [draw.randrange(N_ITEMS)]
    ]


def send_events(settings: Settings, events: list[tuple[int, dict[str, object]]]) -> None:
    """Send (partition, value) pairs, in this order within each partition."""
    send(
        settings.kafka.bootstrap_servers,
        settings.topics.interactions,
        [(partition, None, msgspec.json.encode(value)) for partition, value in events],
    )


def send_walks(settings: Settings, users: int, seed: int = 0) -> int:
    """Send walks, each user's to one partition; how many events there were."""
    events: list[tuple[int, dict[str, object]]] = [
        (number % settings.topics.partitions, {"user_id": user, "item_id": step})
        for number, (user, steps) in enumerate(walks(users, seed))
        for step in steps
    ]
    send_events(settings, events)
    return len(events)


def ring_settings(settings: Settings, training: TrainingConfig = QUICK) -> Settings:
    """Settings of a model for this world, one thread of the CPU; its topics exist."""
    own = dataclasses.replace(
        settings,
        model=ModelSettings(hidden_size=16, n_blocks=1, max_length=10, dropout=0, lru_dropout=0),
        training=training,
        trainer=dataclasses.replace(settings.trainer, threads=1, device="cpu"),
    )
    create_topics(own)
    return own
