"""One of several worker processes under a supervisor.

`python -m pipeline.worker.child NUMBER --channel FD --settings...`, called by `supervisor` alone.
It is the worker that `lrurec worker` runs, but for four things: its log lines carry its number, it
leaves notes on the topics to its supervisor, it answers for /metrics and health through the channel
instead of a port, and it stops when its supervisor is gone.
"""

import atexit
import logging
import os
import signal
import sys
import time
from collections.abc import Callable
from dataclasses import dataclass, field

import tyro
from prometheus_client import REGISTRY, CollectorRegistry, disable_created_metrics, generate_latest

from pipeline.log import configure_logging
from pipeline.settings import Settings, SettingsFlags
from pipeline.worker.channel import HEALTH, METRICS, READY, ProcessEnd, encode_verdict
from pipeline.worker.start_watch import StartWatch

_log = logging.getLogger(__name__)

ALONE_MARGIN_S = 5.0  # beyond the stop's own deadline


@dataclass(frozen=True, kw_only=True)
class Command:
    """Run one worker of several; started by `lrurec worker --processes N`."""

    number: tyro.conf.Positional[int]
    """Its number, from 0 on."""

    channel: int
    """The file descriptor of its end of the channel."""

    settings: SettingsFlags = field(default_factory=Settings)


def run(command: Command) -> int:
    """Run the worker; ends by SystemExit with Faust's exit code."""
    settings, start = command.settings, StartWatch(command.settings)
    configure_logging(settings.log, process=command.number)
    # A second series for every counter, which nobody here asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library types it not
    answers: dict[bytes, Callable[[], bytes]] = {
        METRICS: lambda: generate_latest(REGISTRY),
        HEALTH: lambda: encode_verdict(True, "starting"),
        READY: lambda: encode_verdict(False, "starting"),
    }
    channel = ProcessEnd(
        command.channel, answers, lambda: _stop_alone(settings.worker.stop_deadline_s)
    )
    from pipeline.worker.app import create_worker  # takes seconds: torch and Faust

    # Shown once the start is through: zeros before would look like a worker without a release.
    ours = CollectorRegistry()
    worker = create_worker(settings, ours, start=start, supervised=True)
    answers[METRICS] = lambda: generate_latest(REGISTRY) + generate_latest(ours)
    answers[HEALTH] = lambda: encode_verdict(*worker.health.alive())
    answers[READY] = lambda: encode_verdict(*worker.health.ready())
    channel.say_started()
    worker.run()
    return 0


def _stop_alone(deadline_s: float) -> None:
    """Stop as by SIGTERM, and end anyway where that takes too long."""
    _log.warning("the supervisor is gone: this process stops, too")
    os.kill(os.getpid(), signal.SIGTERM)
    time.sleep(deadline_s + ALONE_MARGIN_S)
    from pipeline.engine.stop import ExitCode, end_process

    end_process(ExitCode.STOP_DEADLINE, "the stop without a supervisor took too long: ended")


def main() -> int:
    """Run it inside the frame that every command has."""
    from pipeline.__main__ import Entry, say_no_more
    from pipeline.__main__ import main as run_command

    atexit.register(say_no_more)  # before torch is imported, so that it is called last
    name = f"worker[{sys.argv[1]}]"
    return run_command([name, *sys.argv[1:]], {name: Entry(__spec__.name, "one of several")})


if __name__ == "__main__":
    sys.exit(main())
