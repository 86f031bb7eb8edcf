"""`lrurec worker`: the stream."""

from dataclasses import dataclass, field

from prometheus_client import REGISTRY

from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Consume interactions, move states, answer with recommendations; until a signal stops it."""

    settings: SettingsFlags = field(default_factory=Settings)


def run(command: Command) -> int:
    """Run a worker in this process; ends by SystemExit with Faust's exit code."""
    from pipeline.worker.app import create_worker  # torch and Faust: only for those who run

    create_worker(command.settings, REGISTRY).run()
    return 0
