"""`lrurec trainer`: one training after the other."""

import logging
from dataclasses import dataclass, field

from prometheus_client import REGISTRY

from pipeline.errors import SettingsInvalid
from pipeline.settings import Settings, SettingsFlags

_log = logging.getLogger(__name__)


@dataclass(frozen=True, kw_only=True)
class Command:
    """Train again every trainer.period-s, or after trainer.min-new-events; until a signal stops it.

    The first training is due as soon as there are events. Several trainers on one folder of
    releases take turns.
    """

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        trainer = self.settings.trainer
        if trainer.period_s is None and trainer.min_new_events is None:
            msg = "trainer.period_s or trainer.min_new_events must be set, got None for both"
            raise SettingsInvalid(msg)


def run(command: Command) -> int:
    """Train until SIGTERM or SIGINT; 0."""
    from pipeline.metrics import TrainerMetrics  # here and below: only for those who run
    from pipeline.metrics_server import serve
    from pipeline.training.processes import started_by_torchrun, training_device
    from pipeline.training.trainer import StopRequest, Trainer, TrainerStopped

    if started_by_torchrun():
        msg = "trainer is one process: run it without torchrun, or under it: train"
        raise SettingsInvalid(msg)
    settings = command.settings
    training_device(settings.trainer)  # one that is not there is refused now, not at a training
    trainer = Trainer(settings, TrainerMetrics(REGISTRY), stop := StopRequest())
    host, port = settings.metrics.host, settings.metrics.trainer_port

    def runs() -> tuple[bool, str]:
        return True, "runs"

    with serve(REGISTRY, host, port, health=runs, ready=runs):
        stop.listen()
        try:
            trainer.run()
        except TrainerStopped:
            _log.info("stopped")
    return 0
