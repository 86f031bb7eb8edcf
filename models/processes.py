"""The processes that train one model together, each on its share of every batch.

They need little of each other: sums of tensors, values of the first process, values of all. Alone,
none of it costs anything. What torch offers under the name of DistributedDataParallel takes the
plain mean over processes, wants a backward pass of each of them, and hides its one operation in
hooks: here shares have unequal numbers of labels, or none, and one sum of one tensor is all there
is to do.
"""

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import torch
import torch.distributed
from torch import Tensor

from models.errors import ModelError

CPU = torch.device("cpu")


class ProcessLost(ModelError):
    """Another process of a training ended, or did not answer in time.

    Operator action: see what the process said that ended first, and start all of them again; the
    training goes on from its checkpoint.
    """


class ProcessesDisagree(ModelError):
    """The processes of a training were not given the same settings and data.

    Operator action: start all of them with the same flags, variables and files.
    """


class Processes:
    """This process among those that train together; all of them make the same calls in turn.

    With more than one, torch's default process group must be there, with a backend for the CPU and
    one for every device that tensors are summed on.

    Args:
        rank: which one this is, from 0.
        count: how many there are.
    """

    def __init__(self, rank: int = 0, count: int = 1) -> None:
        self.rank, self.count = rank, count

    @property
    def first(self) -> bool:
        """Whether this is the one that speaks for all: it reads, writes and decides."""
        return self.rank == 0

    def add_up(self, tensor: Tensor) -> None:
        """Replace a tensor by the sum of all processes' ones; the same bits everywhere.

        Raises:
            ProcessLost: another process is gone.
        """
        if self.count > 1:
            with self._others_there():
                torch.distributed.all_reduce(tensor)

    def from_first(self, value: Any) -> Any:
        """Return the first process's value, whatever pickle can hold; the others' is ignored.

        Raises:
            ProcessLost: another process is gone.
        """
        if self.count == 1:
            return value
        values = [value if self.first else None]
        with self._others_there():
            torch.distributed.broadcast_object_list(values, device=CPU)
        return values[0]

    def from_all(self, value: Any) -> list[Any]:
        """Return every process's value, by rank.

        Raises:
            ProcessLost: another process is gone.
        """
        if self.count == 1:
            return [value]
        values: list[Any] = [None] * self.count
        with self._others_there():
            torch.distributed.all_gather_object(values, value)
        return values

    def require_same(self, given: dict[str, Any]) -> None:
        """Refuse to go on where the processes were given different things.

        Raises:
            ProcessesDisagree: on every process; the message names the first difference.
            ProcessLost: another process is gone.
        """
        for rank, theirs in enumerate(found := self.from_all(given)):
            for key, expected in found[0].items():
                if theirs[key] != expected:
                    msg = (
                        f"process {rank} of {self.count} has another {key} than process 0: "
                        f"expected {expected}, got {theirs[key]}"
                    )
                    raise ProcessesDisagree(msg)

    @contextmanager
    def _others_there(self) -> Iterator[None]:
        try:
            yield
        except RuntimeError as error:  # what torch makes of a closed connection and of a time-out
            msg = (
                f"process {self.rank} of {self.count}: another process of this training ended or "
                f"does not answer: {error}"
            )
            raise ProcessLost(msg) from error
