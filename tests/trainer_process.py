"""`lrurec trainer` as a process, and what trainers left behind."""

import dataclasses
import signal
import socket
import subprocess
import sys
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from urllib.error import URLError
from urllib.request import urlopen

from models.manifest import Manifest
from pipeline.settings import MetricsSettings, Settings, settings_flags
from pipeline.training.folder import manifests
from pipeline.worker.releases import read_announcements
from tests.kafka import wait_until


def eager(settings: Settings, **changes: object) -> Settings:
    trainer = dataclasses.replace(settings.trainer, period_s=None, min_new_events=100)
    with socket.create_server(("127.0.0.1", 0)) as server:
        port = server.getsockname()[1]
    return dataclasses.replace(
        settings,
        trainer=dataclasses.replace(trainer, **changes),
        metrics=MetricsSettings(port=port),
    )


class TrainerProcess:
    """A trainer's process and its log."""

    def __init__(self, settings: Settings, name: str) -> None:
        self.settings = settings
        self.log_file = settings.worker.data_dir.parent / f"{name}.log"
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "trainer", *settings_flags(settings)],
                stdout=log,
                stderr=log,
            )

    def log(self) -> str:
        return self.log_file.read_text(errors="replace")

    def metric(self, name: str) -> float | None:
        """The value of one series; None while nothing answers."""
        try:
            url = f"http://127.0.0.1:{self.settings.metrics.port}/metrics"
            with urlopen(url, timeout=5) as answer:
                lines = answer.read().decode().splitlines()
        except (URLError, OSError):
            return None
        (value,) = [line.rpartition(" ")[2] for line in lines if line.startswith(name + " ")]
        return float(value)

    def wait(self, condition: Callable[[], object], what: str, deadline_s: float = 60.0) -> None:
        """Wait while the trainer lives."""

        def holds() -> object:
            assert self.process.poll() is None, self.log()[-3000:]
            return condition()

        try:
            wait_until(holds, what, deadline_s)
        except AssertionError as error:
            raise AssertionError(f"{error}\n{self.log()[-3000:]}") from error

    def stop(self) -> int:
        self.process.send_signal(signal.SIGTERM)
        return self.process.wait(20)


@contextmanager
def running_trainer(settings: Settings, name: str = "trainer") -> Iterator[TrainerProcess]:
    """A trainer that is gone at the end, however the test ends."""
    trainer = TrainerProcess(settings, name)
    try:
        yield trainer
    finally:
        if trainer.process.poll() is None:
            trainer.process.kill()
            trainer.process.wait(10)


def announced(settings: Settings) -> list[int]:
    return [announcement.version for _, announcement in read_announcements(settings)]


def releases(settings: Settings) -> list[Manifest]:
    return list(reversed(list(manifests(settings.trainer.releases_dir))))
