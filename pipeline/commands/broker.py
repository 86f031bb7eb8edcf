"""`lrurec broker`: the local Kafka."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from pipeline.json_report import write_json_report
from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Start, stop or look at the local Kafka; `status` exits with 1 where none runs."""

    action: tyro.conf.Positional[Literal["start", "stop", "status"]]
    """start: have it running, and wait until it serves. stop: end it; its topics stay."""

    json: Path | None = None
    """File to write the result to: running, address, pid, version, data_dir, log_file."""

    settings: SettingsFlags = field(default_factory=Settings)


def run(command: Command) -> int:
    """Do it; 0, or 1 for the status of a broker that does not run."""
    from pipeline.cluster import broker  # a Kafka client: only for those who run

    settings = command.settings.broker
    if command.action == "stop":
        stopped = broker.stop(settings)
        print("stopped" if stopped else f"nothing to stop in {settings.data_dir}")
        write_json_report(command.json, {"running": False, "stopped": stopped})
        return 0
    info = broker.start(settings) if command.action == "start" else broker.status(settings)
    if info is None:
        print(f"no Kafka serves from {settings.data_dir}")
        write_json_report(command.json, {"running": False})
        return 1
    print(f"Kafka {info.version} serves at {info.address} (pid {info.pid}, log {info.log_file})")
    write_json_report(command.json, {"running": True, **asdict(info)})
    return 0
