"""What is done to the workers and to Kafka: each scenario a list of steps that its seed decides.

A step on a worker that is not there (it was told to stop, or killed) does nothing, nor does one
that starts a worker which is; so any list of steps can be played.
"""

import random
from collections.abc import Callable, Iterator
from dataclasses import dataclass
from enum import StrEnum, unique

SESSION_S = 4.0
BEYOND_SESSION_S = (1.5 * SESSION_S, 2.5 * SESSION_S)
WITHIN_SESSION_S = (0.1 * SESSION_S, 0.7 * SESSION_S)
STAGES = ("computed", "sent", "rows-sent", "committed", "written", "acknowledged")


@unique
class Do(StrEnum):
    """One kind of step."""

    JOIN = "join"
    """Start the worker, on the disk that it left."""

    LEAVE = "leave"
    """SIGTERM, and wait for its end."""

    KILL = "kill"
    """kill -9, once it answers; one that was started to die at a stage is waited for."""

    FREEZE = "freeze"
    """SIGSTOP, and SIGCONT later; a worker that was started to freeze at a stage is waited for."""

    WIPE = "wipe"
    """kill -9 if it runs, and remove its disk."""

    SWAP = "swap"
    """Announce a new release."""

    STOP_BROKER = "stop-broker"
    """Stop Kafka in its order, and start it again."""

    KILL_BROKER = "kill-broker"
    """kill -9 of Kafka, and start it again."""


@dataclass(frozen=True, kw_only=True)
class Step:
    """One thing that is done.

    Attributes:
        do: What.
        who: The worker's name; it is also that of its disk.
        die_at: For a worker to start: STAGE:N, where it will kill itself.
        freeze_at: The same, where it will freeze itself.
        waits: Whether a worker to start is waited for until it answers.
        seconds: How long it is frozen, or Kafka is away.
        then_s: How long the run rests after it.
    """

    do: Do
    who: str = ""
    die_at: str | None = None
    freeze_at: str | None = None
    waits: bool = True
    seconds: float = 0.0
    then_s: float = 0.0

    def __str__(self) -> str:
        at = self.die_at or self.freeze_at
        parts = (self.do, self.who, at and f"to {'die' if self.die_at else 'freeze'} at {at}")
        length = f"for {self.seconds:.1f} s" if self.seconds else ""
        return " ".join(part for part in (*parts, length) if part)


@dataclass(frozen=True, kw_only=True)
class Scenario:
    """A kind of run.

    Attributes:
        what: What happens, in words.
        workers: Those that run from the start.
        steps: Makes the steps of one round.
        minutes: Rounds are played until so much time is over, at least one.
    """

    what: str
    workers: tuple[str, ...]
    steps: Callable[[random.Random], Iterator[Step]]
    minutes: float = 0.0


def joins(rng: random.Random) -> Iterator[Step]:
    for _ in range(6):
        yield Step(do=Do.JOIN, who="w3", then_s=rng.uniform(1.0, 5.0))
        yield Step(do=Do.LEAVE, who="w3", then_s=rng.uniform(0.5, 3.0))


def mixed(rng: random.Random) -> Iterator[Step]:
    yield Step(do=Do.JOIN, who="w3", then_s=rng.uniform(2.0, 5.0))
    yield Step(do=Do.LEAVE, who="w3", then_s=rng.uniform(1.0, 3.0))
    yield Step(do=Do.JOIN, who="w3", then_s=rng.uniform(2.0, 5.0))
    yield Step(do=Do.KILL, who="w2", then_s=rng.uniform(0.0, 2 * SESSION_S))
    yield Step(do=Do.JOIN, who="w2", then_s=rng.uniform(2.0, 5.0))
    yield from frozen(rng, "w1", None)
    yield from frozen(rng, "w2", "rows-sent")
    yield from frozen(rng, "w3", "computed")


def frozen(rng: random.Random, who: str, stage: str | None) -> Iterator[Step]:
    """A worker freezes beyond its session, at any moment or at a stage, and wakes up again."""
    if stage is not None:
        yield Step(do=Do.LEAVE, who=who, then_s=rng.uniform(0.5, 2.0))
        at = f"{stage}:{rng.randrange(20, 60)}"
        yield Step(do=Do.JOIN, who=who, freeze_at=at, seconds=rng.uniform(*BEYOND_SESSION_S))
    seconds = rng.uniform(*BEYOND_SESSION_S)
    yield Step(do=Do.FREEZE, who=who, seconds=seconds, then_s=seconds + rng.uniform(1.0, 4.0))


def kills(rng: random.Random) -> Iterator[Step]:
    for number in range(20):
        who = f"w{number % 3 + 1}"  # in turn: two others run or start while one does
        yield Step(do=Do.KILL, who=who, then_s=rng.uniform(0.0, 1.5))
        die_at = f"{rng.choice(STAGES)}:{rng.randrange(10, 60)}" if number % 2 == 0 else None
        pause_s = rng.uniform(1.0, 4.0)
        yield Step(do=Do.JOIN, who=who, die_at=die_at, waits=False, then_s=pause_s)


def brokers(rng: random.Random) -> Iterator[Step]:
    ways = [Do.STOP_BROKER, Do.KILL_BROKER, rng.choice([Do.STOP_BROKER, Do.KILL_BROKER])]
    rng.shuffle(ways)
    for do in ways:
        yield Step(do=do, seconds=rng.uniform(0.0, 6.0), then_s=rng.uniform(6.0, 12.0))


def wipes(rng: random.Random) -> Iterator[Step]:
    for _ in range(10):
        who = f"w{rng.randrange(1, 4)}"
        if rng.random() < 0.4:
            yield Step(do=Do.LEAVE, who=who)
        yield Step(do=Do.WIPE, who=who, then_s=rng.uniform(0.0, 3.0))
        yield Step(do=Do.JOIN, who=who, then_s=rng.uniform(0.5, 4.0))


def storm(rng: random.Random) -> Iterator[Step]:
    who, then_s = f"w{rng.randrange(1, 4)}", rng.uniform(0.2, 4.0)
    do = rng.choices(list(STORM), list(STORM.values()))[0]
    at = f"{rng.choice(STAGES)}:{rng.randrange(10, 200)}" if rng.random() < 0.3 else None
    seconds = {
        Do.FREEZE: rng.uniform(*rng.choice([BEYOND_SESSION_S, WITHIN_SESSION_S])),
        Do.JOIN: rng.uniform(*BEYOND_SESSION_S),
        Do.STOP_BROKER: rng.uniform(0.0, 3.0),
        Do.KILL_BROKER: rng.uniform(0.0, 3.0),
    }.get(do, 0.0)
    dies = rng.random() < 0.5
    yield Step(
        do=do,
        who=who,
        die_at=at if do is Do.JOIN and dies else None,
        freeze_at=at if do is Do.JOIN and not dies else None,
        seconds=seconds,
        then_s=then_s,
    )


STORM = {
    Do.JOIN: 40,
    Do.LEAVE: 12,
    Do.KILL: 12,
    Do.FREEZE: 20,
    Do.WIPE: 8,
    Do.SWAP: 4,
    Do.STOP_BROKER: 2,
    Do.KILL_BROKER: 2,
}
"""How often each is done, of a hundred."""


def short(rng: random.Random) -> Iterator[Step]:
    """Everything once, for CI."""
    yield Step(do=Do.JOIN, who="w3", then_s=rng.uniform(1.0, 3.0))
    yield Step(do=Do.SWAP, then_s=rng.uniform(0.5, 1.5))
    yield Step(do=Do.LEAVE, who="w3", then_s=rng.uniform(0.5, 1.5))
    yield Step(do=Do.KILL, who="w2", then_s=rng.uniform(0.0, 2.0))
    at = f"rows-sent:{rng.randrange(10, 30)}"
    yield Step(do=Do.JOIN, who="w2", freeze_at=at, seconds=rng.uniform(*BEYOND_SESSION_S))
    yield Step(do=Do.FREEZE, who="w2", then_s=rng.uniform(2.0, 6.0))
    yield Step(do=Do.JOIN, who="w3", die_at=f"{rng.choice(STAGES)}:{rng.randrange(10, 30)}")
    yield Step(do=Do.KILL, who="w3", then_s=rng.uniform(0.0, 1.0))
    yield Step(do=Do.FREEZE, who="w1", seconds=rng.uniform(*WITHIN_SESSION_S), then_s=1.0)
    yield Step(do=Do.WIPE, who="w3", then_s=rng.uniform(0.0, 1.0))
    yield Step(do=Do.JOIN, who="w3", then_s=rng.uniform(0.5, 2.0))
    yield Step(do=Do.KILL_BROKER, seconds=rng.uniform(0.0, 2.0), then_s=rng.uniform(3.0, 5.0))
    yield Step(do=Do.WIPE, who="w1")


SCENARIOS = {
    "joins": Scenario(
        what="a third worker joins and leaves six times", workers=("w1", "w2"), steps=joins
    ),
    "mixed": Scenario(
        what="join, SIGTERM, restart on the old disk, kill -9, restart; three freezes beyond the "
        "session: at any moment, with rows sent and not committed, with a batch computed",
        workers=("w1", "w2"),
        steps=mixed,
    ),
    "kills": Scenario(
        what="20 times kill -9, half of them at a stage of a batch or a checkpoint",
        workers=("w1", "w2", "w3"),
        steps=kills,
    ),
    "brokers": Scenario(
        what="Kafka is stopped or killed and started again, three times",
        workers=("w1", "w2"),
        steps=brokers,
    ),
    "wipes": Scenario(
        what="10 times a worker is killed or told to stop, and comes back on an empty disk",
        workers=("w1", "w2", "w3"),
        steps=wipes,
    ),
    "storm": Scenario(
        what="anything at any time, new releases included",
        workers=("w1",),
        steps=storm,
        minutes=3.0,
    ),
    "short": Scenario(what="each kind of step once", workers=("w1", "w2"), steps=short),
}
