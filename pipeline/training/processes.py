"""The processes that `torchrun` starts for one training, one for each GPU where there are some."""

import logging
from collections.abc import Iterator
from contextlib import contextmanager
from datetime import timedelta

import torch
import torch.distributed

from models.processes import Processes
from pipeline.errors import SettingsInvalid
from pipeline.settings import TrainerSettings
from pipeline.worker.served_model import choose_device

LONGEST_WAIT = timedelta(hours=1)
"""For another process that is alive but silent; the first one may be reading a long topic. One that
dies is noticed at once."""


def started_by_torchrun() -> bool:
    """Tell whether this process is one of those that torchrun starts."""
    return torch.distributed.is_available() and torch.distributed.is_torchelastic_launched()


def training_device(trainer: TrainerSettings) -> torch.device:
    """Return where this process trains: under torchrun the GPU of its number on this machine.

    Raises:
        SettingsInvalid: there is no such device, one GPU is named for all processes, or there are
            fewer than processes.
    """
    device = choose_device(trainer.device, "trainer.device")
    if device.type != "cuda" or not started_by_torchrun():
        return device
    number, gpus = torch.distributed.get_node_local_rank(), torch.cuda.device_count()
    if device.index is not None:
        msg = f"trainer.device must be cuda, cpu or auto under torchrun, got {device}"
        raise SettingsInvalid(msg)
    if number >= gpus:
        msg = f"--nproc-per-node of torchrun must be at most {gpus}, the number of GPUs"
        raise SettingsInvalid(msg)
    return torch.device("cuda", number)


@contextmanager
def joined_processes(trainer: TrainerSettings) -> Iterator[Processes]:
    """Join the processes that torchrun started; without it, be the only one.

    All but the first log warnings only.

    Raises:
        SettingsInvalid: see `training_device`; nothing has been read yet.
    """
    device = training_device(trainer)
    if not started_by_torchrun():
        yield Processes()
        return
    if device.type == "cuda":
        torch.cuda.set_device(device)
    # Decisions and data go over the CPU, so that no GPU is waited for; gradients from GPU to GPU.
    torch.distributed.init_process_group(
        "cpu:gloo,cuda:nccl" if device.type == "cuda" else "gloo", timeout=LONGEST_WAIT
    )
    try:
        processes = Processes(torch.distributed.get_rank(), torch.distributed.get_world_size())
        if not processes.first:
            logging.getLogger().setLevel(logging.WARNING)
        yield processes
    finally:
        torch.distributed.destroy_process_group()
