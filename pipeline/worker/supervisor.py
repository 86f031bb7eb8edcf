"""Several worker processes on one machine under one that starts, watches and stops them.

The processes are members of one consumer group, each with a folder of its own, so partitions go
from one to another as they do between machines. The supervisor itself does no work: it must stay
light (no torch, no Faust). A process that ends by itself is started again after a pause that grows.

Dead ends: a process learns from its channel that the supervisor is gone, and stops. Its folder's
lock, which it inherits, lets the next supervisor wait for it.
"""

import asyncio
import logging
import os
import signal
import subprocess
import sys
import time
from collections.abc import Callable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import replace
from typing import TypeVar

from prometheus_client import CollectorRegistry

from pipeline.cluster.topics import require_topics
from pipeline.engine.stop import ExitCode
from pipeline.metrics import SupervisorMetrics
from pipeline.metrics_server import serve
from pipeline.settings import Settings, settings_flags
from pipeline.worker.channel import HEALTH, METRICS, READY, SupervisorEnd, decode_verdict
from pipeline.worker.exits import is_final, meaning, pause_after
from pipeline.worker.folder_lock import lock_folder
from pipeline.worker.merged_pages import MergedPages, merged_verdict
from pipeline.worker.start_watch import start_deadline_s

_log = logging.getLogger(__name__)

T = TypeVar("T")

# A process ends itself at its own deadlines; killed is what cannot.
STOP_MARGIN_S = 5.0
START_MARGIN_S = 10.0  # its own watch begins once Python runs
ANSWER_DEADLINE_S = 2.0


def supervise(settings: Settings, processes: int) -> int:
    """Run several workers until a signal stops them, or one of them cannot be helped.

    Returns:
        0 after a stop in time, else the exit code of the process that ended it.

    Raises:
        PipelineError: Something is not as the settings say; one line that says what to do.
        StateError: The data folder is in use or cannot be written.
    """
    partitions = require_topics(settings)
    if processes > partitions:
        _log.warning(
            "%d processes for %d partitions: %d of them will stand idle",
            processes,
            partitions,
            processes - partitions,
        )
    wait_s = settings.worker.stop_deadline_s + 2 * STOP_MARGIN_S
    with lock_folder(settings.worker.data_dir, wait_s) as lock:
        supervisor = Supervisor(settings, processes, lock)
        with serve(
            supervisor.registry,
            settings.metrics.host,
            settings.metrics.worker_port,
            health=supervisor.alive,
            ready=supervisor.ready,
        ):
            return asyncio.run(supervisor.run())


def settings_of_process(settings: Settings, number: int, processes: int) -> Settings:
    """Return what one of several processes runs with: folder, fixed name and threads of its own."""
    worker, kafka = settings.worker, settings.kafka
    threads = worker.threads or max(1, usable_cores() // processes)
    folder = worker.data_dir / f"process-{number}"
    name = kafka.group_instance_id
    return replace(
        settings,
        worker=replace(worker, data_dir=folder, threads=threads),
        kafka=replace(kafka, group_instance_id=name and f"{name}-{number}"),
        metrics=replace(settings.metrics, port=0),
    )


def usable_cores() -> int:
    """Return how many cores this process may run on."""
    if hasattr(os, "sched_getaffinity"):
        return len(os.sched_getaffinity(0))
    return os.cpu_count() or 1


class Child:
    """One worker process, started as often as need be.

    Args:
        number: Its number.
        settings: What it runs with.
        lock: The folder's lock, for it to inherit.

    Attributes:
        number: As given.
        was_ready: Whether a start of it was ever through.
    """

    def __init__(self, number: int, settings: Settings, lock: int) -> None:
        self.number = number
        self.was_ready = False
        self._settings = settings
        self._lock = lock
        self._start_deadline_s = start_deadline_s(settings)
        self._started_s = 0.0
        self._running: tuple[subprocess.Popen[bytes], SupervisorEnd] | None = None

    def start(self) -> int:
        """Start it; its process id."""
        channel = SupervisorEnd()
        command = [sys.executable, "-m", "pipeline.worker.child", str(self.number)]
        command += ["--channel", str(channel.child_descriptor)]
        # All of them: no variable of the environment may undo what is this process's own.
        command += settings_flags(self._settings, complete=True)
        process = subprocess.Popen(
            command,
            stdin=subprocess.DEVNULL,
            pass_fds=(channel.child_descriptor, self._lock),
            start_new_session=True,  # Ctrl-C in a terminal reaches the supervisor alone
        )
        channel.handed_over()
        self._started_s = time.monotonic()
        self._running = process, channel
        return process.pid

    def wait(self) -> int:
        """Wait for its end; the exit code, or minus the number of the signal that ended it.

        One whose start takes too long is killed.
        """
        assert self._running is not None
        process, channel = self._running
        if not channel.wait_for_start(self._start_deadline_s + START_MARGIN_S):
            _log.error(
                "process %d (pid %d) has not started in %g s: killing it",
                self.number,
                process.pid,
                self._start_deadline_s + START_MARGIN_S,
            )
            process.kill()
        code = process.wait()
        self._running = None
        channel.close()
        self.was_ready = self.was_ready or channel.has_started()
        return code

    def send(self, number: signal.Signals) -> None:
        """Send it a signal, where it runs."""
        running = self._running  # the thread that waits for its end may clear it now
        if running is not None:
            running[0].send_signal(number)

    def ask(self, question: bytes) -> bytes | None:
        """Ask it; None where it does not answer."""
        running = self._running
        return None if running is None else running[1].ask(question, ANSWER_DEADLINE_S)

    def verdict(self, question: bytes) -> tuple[bool, str]:
        """Ask for its health or whether it is ready.

        One that is down or starts is not ready, but no reason to end all of them: it is started
        again. One that runs and does not answer stands still, and so does one that starts for ever.
        """
        running = self._running
        answer = self.ask(question)
        if answer is not None:
            return decode_verdict(answer)
        if running is None:
            return question == HEALTH, "down"
        if running[1].has_started():
            return False, "does not answer"
        elapsed_s = time.monotonic() - self._started_s
        in_time = elapsed_s < self._start_deadline_s
        return question == HEALTH and in_time, f"starting for {elapsed_s:.0f} s"


class Supervisor:
    """Starts, watches and stops the processes.

    Args:
        settings: All settings.
        processes: How many.
        lock: The folder's lock, for them to inherit.

    Attributes:
        registry: What /metrics shows.
    """

    def __init__(self, settings: Settings, processes: int, lock: int) -> None:
        self._children = [
            Child(number, settings_of_process(settings, number, processes), lock)
            for number in range(processes)
        ]
        self._stop_deadline_s = settings.worker.stop_deadline_s + STOP_MARGIN_S
        self._stopping = asyncio.Event()
        self._waiters = ThreadPoolExecutor(processes, "wait")
        self._final_code: int | None = None
        self.registry = CollectorRegistry()
        # Before the metrics of its own: reading the pages sets which processes answer.
        self.registry.register(MergedPages(self._read_pages))
        self._metrics = SupervisorMetrics(self.registry, processes)

    async def run(self) -> int:
        """Keep the processes running until a stop; the exit code."""
        loop = asyncio.get_running_loop()
        for number in (signal.SIGTERM, signal.SIGINT, signal.SIGHUP):
            if signal.getsignal(number) is not signal.SIG_IGN:  # nohup
                loop.add_signal_handler(number, self._stop_by, number)
        keepers = [asyncio.create_task(self._keep(child)) for child in self._children]
        await self._stopping.wait()
        self._signal_all(signal.SIGTERM)
        _, late = await asyncio.wait(keepers, timeout=self._stop_deadline_s)
        if late:
            _log.error("%d processes did not stop in time: killing them", len(late))
            self._signal_all(signal.SIGKILL)
        codes = [code for code in await asyncio.gather(*keepers) if code]
        if self._final_code is not None:
            return self._final_code
        if late:
            return ExitCode.STOP_DEADLINE
        return next((code if code > 0 else 128 - code for code in codes), 0)

    def alive(self) -> tuple[bool, str]:
        """Tell whether no process stands still."""
        return self._ask_verdicts(HEALTH)

    def ready(self) -> tuple[bool, str]:
        """Tell whether the partitions of all processes flow."""
        return self._ask_verdicts(READY)

    async def _keep(self, child: Child) -> int:
        """Start a process again and again; its last exit code, 0 where a stop ended it."""
        loop = asyncio.get_running_loop()
        pause_s = 0.0
        try:
            while not self._stopping.is_set():
                pid, started_s = child.start(), time.monotonic()
                _log.info("process %d started (pid %d)", child.number, pid)
                code = await loop.run_in_executor(self._waiters, child.wait)
                ran_s = time.monotonic() - started_s
                said = f"process {child.number} (pid {pid}) ended after {ran_s:.0f} s"
                if self._stopping.is_set():
                    _log.info("%s: %s", said, meaning(code))
                    return 0 if code == -signal.SIGTERM else code  # it had not begun yet
                if is_final(code, was_ready=child.was_ready):
                    _log.critical("%s: %s; stopping all", said, meaning(code))
                    self._final_code = code
                    return code
                pause_s = pause_after(pause_s, ran_s)
                _log.warning("%s: %s; starting it again in %g s", said, meaning(code), pause_s)
                self._metrics.restarts[str(child.number)].inc()
                await self._pause(pause_s)
            return 0
        finally:
            # Whatever ended this, a bug too, must not leave the others running unwatched.
            self._stopping.set()

    async def _pause(self, seconds: float) -> None:
        try:
            async with asyncio.timeout(seconds):
                await self._stopping.wait()
        except TimeoutError:
            return

    def _stop_by(self, number: signal.Signals) -> None:
        if not self._stopping.is_set():
            _log.info("%s: stopping %d processes", number.name, len(self._children))
        self._stopping.set()

    def _signal_all(self, number: signal.Signals) -> None:
        for child in self._children:
            child.send(number)

    def _ask_all(self, ask: Callable[[Child], T]) -> list[T]:
        # Threads of this request alone: in common ones, requests would queue without bound behind
        # those that wait for a process which stands still.
        with ThreadPoolExecutor(len(self._children), "ask") as askers:
            return list(askers.map(ask, self._children))

    def _ask_verdicts(self, question: bytes) -> tuple[bool, str]:
        verdicts = self._ask_all(lambda child: child.verdict(question))
        return merged_verdict(dict(enumerate(verdicts)))

    def _read_pages(self) -> Mapping[int, str]:
        pages = {}
        answers = self._ask_all(lambda child: child.ask(METRICS))
        for number, answer in enumerate(answers):
            self._metrics.up[str(number)].set(answer is not None)
            if answer is not None:
                pages[number] = answer.decode()
        return pages
