"""The workers of a run: started, stopped, killed, frozen, and started again when they end."""

import dataclasses
import shutil
import signal
import socket
import time
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path

import psutil

from pipeline.settings import MetricsSettings, Settings
from tests.chaos.kinds import Kind
from tests.chaos.report import Outcome
from tests.chaos.scenarios import Do, Step
from tests.kafka import free_port
from tests.worker_process import WorkerProcess

START_DEADLINE_S = 180.0  # a busy machine takes its time to load torch
LEAVE_DEADLINE_S = 30.0
STAGE_DEADLINE_S = 20.0  # a worker without partitions never reaches its stage
POLL_S = 0.1
LOG_TAIL = 2000
MOST_ODD_EXITS = 20  # more, and the workers do not run at all


@dataclass
class Member:
    """One worker that runs.

    Attributes:
        step: The one that started it.
        process: Its process.
        was_frozen: Whether it ever was.
        thaw_at_s: When a frozen one wakes up, by the monotonic clock.
    """

    step: Step
    process: WorkerProcess
    was_frozen: bool = False
    thaw_at_s: float | None = None


class Fleet:
    """The workers, by name; each has its own folder, log and port.

    One that ends by itself is noted, and started again, as a supervisor would.

    Args:
        settings: Of all of them.
        folder: Takes their folders.
        kind: What they are.
        outcome: Takes what happens.
        say: Is told what was not asked for.
    """

    def __init__(
        self,
        settings: Settings,
        folder: Path,
        kind: Kind,
        outcome: Outcome,
        say: Callable[[str], None],
    ) -> None:
        self._settings = settings
        self._folder = folder
        self._kind = kind
        self._outcome = outcome
        self._say = say
        self.members: dict[str, Member] = {}
        self.broker_was_away = False

    def start(self, names: Sequence[str]) -> None:
        """Start workers side by side, and wait until all answer."""
        members = {name: self._start(Step(do=Do.JOIN, who=name)) for name in names}
        for name, member in members.items():
            self._wait_for(name, member)

    def join(self, step: Step) -> None:
        if step.who not in self.members:
            member = self._start(step)
            if step.waits:
                self._wait_for(step.who, member)

    def _wait_for(self, name: str, member: Member) -> None:
        deadline_s = time.monotonic() + START_DEADLINE_S
        while self.members.get(name) is member and not self._answers(member):
            if time.monotonic() > deadline_s:
                self._hang(f"{name} did not answer for {START_DEADLINE_S:g} s after its start")
                return
            self.rest(POLL_S)

    def _start(self, step: Step) -> Member:
        settings = dataclasses.replace(
            self._settings,
            metrics=MetricsSettings(port=free_port()),
            worker=dataclasses.replace(self._settings.worker, data_dir=self._disk(step.who)),
        )
        process = WorkerProcess(
            settings,
            die_at=step.die_at or "none:0",
            freeze_at=step.freeze_at,
            module=self._kind.module,
        )
        self.members[step.who] = member = Member(step, process)
        return member

    def _disk(self, name: str) -> Path:
        return self._folder / name / "worker"

    def _answers(self, member: Member) -> bool:
        """Tell whether it listens, or has frozen itself before."""
        if member.thaw_at_s is not None:
            return True
        with socket.socket() as probe:
            return probe.connect_ex(("127.0.0.1", member.process.settings.metrics.port)) == 0

    def leave(self, step: Step) -> None:
        if step.who in self.members:
            self.tell_to_leave([step.who])

    def tell_to_leave(self, names: list[str]) -> None:
        """SIGTERM to all of these, and wait for their ends."""
        leaving = {name: self.members.pop(name) for name in names}
        for member in leaving.values():
            member.process.process.send_signal(signal.SIGTERM)
        deadline_s = time.monotonic() + LEAVE_DEADLINE_S
        while leaving:
            for name, member in list(leaving.items()):
                code = member.process.process.poll()
                if code is not None:
                    self._note_exit(name, member, code)
                    del leaving[name]
                elif time.monotonic() > deadline_s:
                    self._hang(f"{name} was still there {LEAVE_DEADLINE_S:g} s after SIGTERM")
                    member.process.kill()
                    del leaving[name]
                else:
                    self._thaw(member)  # it may come to where it freezes itself only now
            self.rest(POLL_S)

    def kill(self, step: Step) -> None:
        member = self.members.get(step.who)
        if member is None:
            return
        self._wait_for(step.who, member)
        if member.step.die_at is not None and self._waited(
            lambda: self.members.get(step.who) is not member
        ):
            return  # it has killed itself
        if self.members.get(step.who) is member:
            del self.members[step.who]
            member.process.kill()

    def freeze(self, step: Step) -> None:
        member = self.members.get(step.who)
        if member is None:
            return
        if member.step.freeze_at is not None and self._waited(
            lambda: member.was_frozen or self.members.get(step.who) is not member
        ):
            return  # it has frozen itself
        if member.thaw_at_s is None and self.members.get(step.who) is member:
            member.process.process.send_signal(signal.SIGSTOP)
            self._is_frozen(member, step.seconds or member.step.seconds)

    def _waited(self, condition: Callable[[], bool]) -> bool:
        """Wait until a worker has come to its stage; False where it does not."""
        deadline_s = time.monotonic() + STAGE_DEADLINE_S
        while not condition():
            if time.monotonic() > deadline_s:
                self._outcome.done["stage not reached"] += 1
                return False
            self.rest(POLL_S)
        return True

    def _is_frozen(self, member: Member, seconds: float) -> None:
        member.was_frozen = True
        member.thaw_at_s = time.monotonic() + seconds

    def _thaw(self, member: Member) -> None:
        member.process.process.send_signal(signal.SIGCONT)
        member.thaw_at_s = None

    def wipe(self, step: Step) -> None:
        member = self.members.pop(step.who, None)
        if member is not None:
            member.process.kill()
        shutil.rmtree(self._disk(step.who), ignore_errors=True)

    def rest(self, seconds: float) -> None:
        """Let time pass, and look after the workers meanwhile."""
        ends_s = time.monotonic() + seconds
        while True:
            self._look_after_all()
            left_s = ends_s - time.monotonic()
            if left_s <= 0:
                return
            time.sleep(min(POLL_S, left_s))

    def _look_after_all(self) -> None:
        for name, member in list(self.members.items()):
            code = member.process.process.poll()
            if code is None:
                self._look_after(member)
                continue
            del self.members[name]
            if member.step.die_at is not None and code == -signal.SIGKILL:
                self._outcome.done[f"died at {member.step.die_at.partition(':')[0]}"] += 1
            else:
                self._say(f"  {name} ended by itself with {code}; it is started again")
                self._note_exit(name, member, code)
                self._start(dataclasses.replace(member.step, die_at=None, freeze_at=None))

    def _look_after(self, member: Member) -> None:
        if member.thaw_at_s is not None:
            if time.monotonic() >= member.thaw_at_s:
                self._thaw(member)
        elif member.step.freeze_at is not None and not member.was_frozen and self._stands(member):
            self._outcome.done[f"froze at {member.step.freeze_at.partition(':')[0]}"] += 1
            self._is_frozen(member, member.step.seconds)

    def _stands(self, member: Member) -> bool:
        return bool(psutil.Process(member.process.process.pid).status() == psutil.STATUS_STOPPED)

    def _note_exit(self, name: str, member: Member, code: int) -> None:
        self._outcome.exits[code] += 1
        expected = {0, -signal.SIGTERM}  # the latter before it could listen to signals
        if member.was_frozen:
            expected |= self._kind.exits_frozen
        if self.broker_was_away:
            expected |= self._kind.exits_broker
        if code not in expected:
            self._outcome.odd_exits.append(f"{name}: {code}")
            log = member.process.log()[-LOG_TAIL:]
            self._say(f"{name} ended with {code}, its log:\n{log}")
            if len(self._outcome.odd_exits) > MOST_ODD_EXITS:
                msg = f"{len(self._outcome.odd_exits)} workers ended oddly, the last one so:\n{log}"
                raise RuntimeError(msg)

    def _hang(self, what: str) -> None:
        self._outcome.hangs.append(what)
        self._say(f"HANG: {what}")

    def thaw_all(self) -> None:
        for member in self.members.values():
            if member.thaw_at_s is not None:
                self._thaw(member)

    def kill_all(self) -> None:
        for member in self.members.values():
            if member.process.process.poll() is None:
                member.process.kill()
        self.members.clear()
