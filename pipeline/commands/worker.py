"""`lrurec worker`: the stream."""

from dataclasses import dataclass, field

from prometheus_client import REGISTRY

from pipeline.setting_checks import check
from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Consume interactions, move states, answer with recommendations; until a signal stops it."""

    processes: int = 1
    """Worker processes on this machine, which share its partitions: as many as there are cores to
    spare, at most as many as partitions. Each has a folder of its own below worker.data_dir."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        check(self.processes >= 1, "--processes", "at least 1", self.processes)
        drain_s = self.settings.worker.drain_timeout_s
        rebalance_s = self.settings.kafka.rebalance_timeout_s
        check(  # or the group throws out a worker that is only busy
            drain_s < rebalance_s,
            "worker.drain_timeout_s",
            f"less than kafka.rebalance_timeout_s ({rebalance_s})",
            drain_s,
        )


def run(command: Command) -> int:
    """Run a worker in this process, or several under a supervisor that is this process.

    One worker ends by SystemExit with Faust's exit code.
    """
    if command.processes > 1:
        from pipeline.worker.supervisor import supervise

        return supervise(command.settings, command.processes)
    from pipeline.worker.app import create_worker  # torch and Faust: only for those who run

    create_worker(command.settings, REGISTRY).run()
    return 0
