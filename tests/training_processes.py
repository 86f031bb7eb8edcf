"""Real processes that train together, as torchrun would start them, for tests to talk to."""

import multiprocessing
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from dataclasses import dataclass
from datetime import timedelta
from multiprocessing.connection import Connection
from pathlib import Path
from typing import Any

import torch
import torch.distributed

from models.processes import Processes

START_S = 120
"""Both import torch first, on a machine that may be busy."""


@dataclass(frozen=True, kw_only=True)
class Outcome:
    """What a call came to in one process."""

    value: Any
    error: Exception | None


class Team:
    """Processes of one group, each of which does what it is told.

    Args:
        members: the processes and the way to talk to them, by rank.
    """

    def __init__(self, members: list[tuple[multiprocessing.process.BaseProcess, Connection]]):
        self.members = members

    def begin(self, function: Callable[..., Any], *arguments: Any) -> None:
        """Have every process call `function(processes, *arguments)`; it must be importable."""
        for _, connection in self.members:
            connection.send((function, arguments))

    def outcomes(self) -> list[Outcome]:
        """Wait for what it came to, in those that are alive, by rank."""
        return [
            connection.recv()
            for process, connection in self.members
            if process.exitcode is None and connection.poll(START_S)
        ]

    def call(self, function: Callable[..., Any], *arguments: Any) -> list[Any]:
        """Do both, where nothing may fail."""
        self.begin(function, *arguments)
        outcomes = self.outcomes()
        assert len(outcomes) == len(self.members)
        for outcome in outcomes:
            if outcome.error is not None:
                raise outcome.error
        return [outcome.value for outcome in outcomes]


@contextmanager
def team(count: int, folder: Path) -> Iterator[Team]:
    """Have so many processes, which meet by a file in the folder."""
    context = multiprocessing.get_context("spawn")
    members = []
    for rank in range(count):
        ours, theirs = context.Pipe()
        arguments = (theirs, folder / "meeting", rank, count)
        process = context.Process(target=_serve, args=arguments, daemon=True)
        process.start()
        theirs.close()
        members.append((process, ours))
    try:
        yield Team(members)
    finally:
        for process, connection in members:
            connection.close()
            process.join(5)
            process.kill()
            process.join()


def _serve(connection: Connection, meeting: Path, rank: int, count: int) -> None:
    torch.set_num_threads(1)
    torch.distributed.init_process_group(
        "gloo",
        init_method=f"file://{meeting}",
        rank=rank,
        world_size=count,
        timeout=timedelta(seconds=START_S),
    )
    processes = Processes(rank, count)
    while True:
        try:
            function, arguments = connection.recv()
        except EOFError:  # the test is over
            torch.distributed.destroy_process_group()
            return
        try:
            value, error = function(processes, *arguments), None
        except Exception as raised:  # whatever it is, the test wants to see it
            value, error = None, raised
        connection.send(Outcome(value=value, error=error))
