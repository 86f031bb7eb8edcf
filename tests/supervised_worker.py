"""`lrurec worker --processes N` as a child process, with what it started and what it shows."""

import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager, suppress
from urllib.request import urlopen

import psutil
from prometheus_client.parser import text_string_to_metric_families
from prometheus_client.samples import Sample

from pipeline.settings import Settings, settings_flags
from tests.kafka import wait_until
from tests.worker_process import ROOT, WorkerProcess


class SupervisedWorker(WorkerProcess):
    """A supervisor, its log, and its worker processes."""

    def __init__(self, settings: Settings, processes: int) -> None:
        self.settings = settings
        self.log_file = settings.worker.data_dir.parent / "worker.log"
        self.log_file.parent.mkdir(parents=True, exist_ok=True)
        command = [sys.executable, "-m", "pipeline", "worker", "--processes", str(processes)]
        with self.log_file.open("ab") as log:
            self.process = subprocess.Popen(
                [*command, *settings_flags(settings)], cwd=ROOT, stdout=log, stderr=log
            )

    def children(self) -> dict[int, psutil.Process]:
        """The worker processes that run, by number."""
        found = {}
        for process in psutil.Process(self.process.pid).children():
            with suppress(psutil.Error):
                words = process.cmdline()
                if "pipeline.worker.child" in words:
                    found[int(words[words.index("pipeline.worker.child") + 1])] = process
        return found

    def wait_for_children(self, number: int = 2) -> dict[int, psutil.Process]:
        """Wait until so many run, ready or not."""

        def there() -> bool:
            assert self.process.poll() is None, self.log()[-3000:]
            return len(self.children()) == number

        wait_until(there, f"{number} processes")
        return self.children()

    def series(self, name: str) -> dict[str, float]:
        """A metric's values summed by process, as a Prometheus parser reads the page."""
        found = dict[str, float]()
        for sample in self._samples():
            if sample.name == name:
                process = sample.labels["process"]
                found[process] = found.get(process, 0.0) + sample.value
        return found

    def names(self) -> set[str]:
        """The names of all series of ours."""
        return {one.name for one in self._samples() if one.name.startswith("lrurec_")}

    def _samples(self) -> Iterator[Sample]:
        port = self.settings.metrics.port
        with urlopen(f"http://127.0.0.1:{port}/metrics", timeout=10) as answer:
            page = answer.read().decode()
        for family in text_string_to_metric_families(page):
            yield from family.samples


@contextmanager
def running_supervisor(settings: Settings, processes: int = 2) -> Iterator[SupervisedWorker]:
    """A supervisor that is gone with all its processes at the end, however the test ends."""
    supervised = SupervisedWorker(settings, processes)
    try:
        yield supervised
    finally:
        if supervised.process.poll() is None:
            children = supervised.children()
            supervised.kill()
            for child in children.values():
                with suppress(psutil.NoSuchProcess):
                    child.kill()
            psutil.wait_procs(list(children.values()), timeout=10)
