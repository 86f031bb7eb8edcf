"""Plays a scenario on real processes and a real Kafka of its own, under load, and judges it."""

import dataclasses
import os
import random
import signal
import time
from collections.abc import Callable
from pathlib import Path

from pipeline.cluster.broker import running_broker
from pipeline.cluster.records import read_partitions
from pipeline.settings import BrokerSettings, Settings
from tests.chaos.fleet import Fleet
from tests.chaos.kinds import Kind, order_of
from tests.chaos.load import Load
from tests.chaos.report import Outcome
from tests.chaos.scenarios import SCENARIOS, SESSION_S, Do, Step
from tests.kafka import committed_lag, free_port, unique_settings

REBALANCE_S = 10.0
EVENTS_PER_S = 400
BATCH_EVENTS = 100
CATCH_UP_DEADLINE_S = 120.0
LAG_POLL_S = 0.25


class Run:
    """One run.

    Args:
        name: Of the scenario.
        kind: The kind of worker.
        folder: For everything on disk.
        seed: Decides the steps and the events.
        minutes: Length; None: the scenario's own.
        events_per_s: The load.
        say: Is told each thing that is done.

    Attributes:
        outcome: What happened so far.
    """

    def __init__(
        self,
        name: str,
        kind: Kind,
        folder: Path,
        *,
        seed: int,
        minutes: float | None = None,
        events_per_s: int = EVENTS_PER_S,
        say: Callable[[str], None] = print,
    ) -> None:
        self.outcome = Outcome(
            scenario=name,
            worker=kind.name,
            seed=seed,
            replay=f".venv/bin/python -m tests.chaos {name} --worker {kind.name} --seed {seed} "
            f"--rate {events_per_s}" + ("" if minutes is None else f" --minutes {minutes:g}"),
        )
        self._scenario = scenario = SCENARIOS[name]
        self._kind = kind
        self._minutes = scenario.minutes if minutes is None else minutes
        self._events_per_s = events_per_s
        self._say = say
        self._broker_settings = BrokerSettings(data_dir=folder / "kafka", port=free_port())
        self._settings = _settings(f"127.0.0.1:{self._broker_settings.port}", folder)
        self._fleet = Fleet(self._settings, folder, kind, self.outcome, say)
        self._versions = 1

    def play(self) -> Outcome:
        """Play it and judge it."""
        self._start_broker()
        load = Load(self._settings, seed=self.outcome.seed, events_per_s=self._events_per_s)
        try:
            self._kind.prepare(self._settings)
            self._fleet.start(self._scenario.workers)
            self._under(load)
            self._catch_up()
            self._fleet.tell_to_leave(list(self._fleet.members))
            self._judge()
        finally:
            load.stop()
            self._fleet.kill_all()
            self._broker.__exit__(None, None, None)
        return self.outcome

    def _start_broker(self) -> None:
        self._broker = running_broker(self._broker_settings)
        self._pid = self._broker.__enter__().pid

    def _under(self, load: Load) -> None:
        """Play rounds under load until the time is over."""
        rng = random.Random(self.outcome.seed)
        load.start()
        started_s = time.monotonic()
        self._fleet.rest(rng.uniform(2.0, 4.0))
        while True:
            for step in self._scenario.steps(rng):
                self._do(step)
            if time.monotonic() - started_s >= 60 * self._minutes:
                break
        load.stop()
        self.outcome.seconds = time.monotonic() - started_s
        self.outcome.sent = load.sent
        if load.error is not None:
            raise load.error

    def _do(self, step: Step) -> None:
        self._say(f"{step} ({', '.join(self._fleet.members)} there)")
        self.outcome.done[step.do] += 1
        if step.do in (Do.STOP_BROKER, Do.KILL_BROKER):
            self._restart_broker(step)
        elif step.do is Do.SWAP:
            self._versions += 1
            self._kind.swap(self._settings, self._versions)
        else:
            getattr(self._fleet, step.do)(step)
        self._fleet.rest(step.then_s)

    def _restart_broker(self, step: Step) -> None:
        self._fleet.broker_was_away = True
        if step.do is Do.KILL_BROKER:
            os.kill(self._pid, signal.SIGKILL)
        self._broker.__exit__(None, None, None)  # returns when it is gone
        self._fleet.rest(step.seconds)
        self._start_broker()

    def _catch_up(self) -> None:
        """Wait until everything is committed by those who are there; if need be, by a new one."""
        self._fleet.thaw_all()
        started_s = time.monotonic()
        if not self._committed():
            self.outcome.hangs.append(
                f"{committed_lag(self._settings)} records not committed "
                f"{CATCH_UP_DEADLINE_S:g} s after the load ended"
            )
            self._say(f"HANG: {self.outcome.hangs[-1]}; a new worker takes over")
            self._fleet.kill_all()
            self._committed()
        self.outcome.recovery_s = time.monotonic() - started_s

    def _committed(self) -> bool:
        deadline_s = time.monotonic() + CATCH_UP_DEADLINE_S
        while committed_lag(self._settings) > 0:
            if time.monotonic() > deadline_s:
                return False
            if not self._fleet.members:  # all were to stay away, or came to where they die
                self._fleet.start(["last"])
            self._fleet.rest(LAG_POLL_S)
        return True

    def _judge(self) -> None:
        self.outcome.judgement = self._kind.judge(self._settings)
        outputs = read_partitions(self._settings.kafka, self._settings.topics.recommendations)
        self.outcome.order = order_of(outputs)


def _settings(address: str, folder: Path) -> Settings:
    settings = unique_settings(address, folder)
    return dataclasses.replace(
        settings,
        kafka=dataclasses.replace(
            settings.kafka, session_timeout_s=SESSION_S, rebalance_timeout_s=REBALANCE_S
        ),
        worker=dataclasses.replace(settings.worker, batch_events=BATCH_EVENTS),
    )
