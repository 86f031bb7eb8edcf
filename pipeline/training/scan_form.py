"""The form that the recurrence has while a model is trained: the fastest on this machine."""

import logging
from collections.abc import Iterator
from contextlib import AbstractContextManager, contextmanager, nullcontext

from models.native_build import NativeUnavailable
from models.scan import backend_for, use_backend
from models.scan.native import load_native
from pipeline.settings import TrainerSettings
from pipeline.worker.served_model import choose_device

_log = logging.getLogger(__name__)


@contextmanager
def fastest_scan(trainer: TrainerSettings) -> Iterator[None]:
    """Train by the fastest form inside; one line of the log says which it is, and why no faster.

    The first training on a machine compiles the native form, in a few seconds. Workers never do.
    """
    device = choose_device(trainer.device)
    native: AbstractContextManager[None] = nullcontext()
    why = ""
    if device.type == "cpu" and trainer.scan == "loop":
        why = " (trainer.scan)"
    elif device.type == "cpu":
        try:
            native = use_backend(load_native(trainer.cache_dir))
        except NativeUnavailable as error:
            why = f" ({error})"
    with native:
        _log.info("training on %s; form of the scan: %s%s", device, backend_for(device).name, why)
        yield
