"""How a supervisor and one of its worker processes talk: a pair of sockets, open while both live.

The supervisor asks, one question at a time, and the process answers from a thread of its own. It
says by itself, once, that its start is through. The end of the other side closes the pair, however
it died, so each learns of it at once. Nothing listens on the network for this.
"""

import logging
import threading
import time
from collections.abc import Callable, Mapping
from multiprocessing import Pipe
from multiprocessing.connection import Connection

_log = logging.getLogger(__name__)

METRICS, HEALTH, READY = b"metrics", b"health", b"ready"
YES, NO = b"1", b"0"
_STARTED = b"started"
_ANSWER = b"="


def encode_verdict(good: bool, line: str) -> bytes:
    """Put the answer to HEALTH and READY into bytes."""
    return (YES if good else NO) + line.encode()


def decode_verdict(answer: bytes) -> tuple[bool, str]:
    """Undo `encode_verdict`."""
    return answer[:1] == YES, answer[1:].decode()


class SupervisorEnd:
    """The supervisor's end; usable from several threads.

    Attributes:
        child_descriptor: Of the other end, for the process to inherit.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = Pipe()
        self.child_descriptor = self._theirs.fileno()
        self._lock = threading.Lock()
        self._awaits_answer = False
        self._has_started = False

    def handed_over(self) -> None:
        """Let go of the other end, once the process has it."""
        self._theirs.close()

    def ask(self, question: bytes, deadline_s: float) -> bytes | None:
        """Ask and wait for the answer; None where none comes in time or the process is gone."""
        until_s = time.monotonic() + deadline_s
        with self._lock:
            try:
                # An answer that came too late is not this question's, and where none came yet a
                # process that stands still must not be sent ever more.
                if self._awaits_answer and self._receive(until_s) is None:
                    return None
                self._ours.send_bytes(question)
                self._awaits_answer = True
                return self._receive(until_s)
            except (OSError, EOFError):
                return None

    def has_started(self) -> bool:
        """Tell whether the process has said that its start is through."""
        with self._lock:
            try:
                while self._ours.poll(0):
                    self._take(self._ours.recv_bytes())
            except (OSError, EOFError):
                pass
            return self._has_started

    def close(self) -> None:
        """Close this end."""
        with self._lock:
            self._ours.close()

    def _receive(self, until_s: float) -> bytes | None:
        while self._ours.poll(max(0.0, until_s - time.monotonic())):
            answer = self._take(self._ours.recv_bytes())
            if answer is not None:
                return answer
        return None

    def _take(self, message: bytes) -> bytes | None:
        if message == _STARTED:
            self._has_started = True
            return None
        self._awaits_answer = False
        return message.removeprefix(_ANSWER)


class ProcessEnd:
    """The worker process's end.

    Args:
        descriptor: As inherited.
        answers: What to answer to each question; asked from a thread of this object. It may be
            changed at any time.
        on_alone: Called from that thread when the supervisor is gone.
    """

    def __init__(
        self,
        descriptor: int,
        answers: Mapping[bytes, Callable[[], bytes]],
        on_alone: Callable[[], None],
    ) -> None:
        self._connection = Connection(descriptor)
        self._answers = answers
        self._on_alone = on_alone
        self._lock = threading.Lock()
        threading.Thread(target=self._run, name="supervisor", daemon=True).start()

    def say_started(self) -> None:
        """Tell the supervisor that the start is through."""
        self._send(_STARTED)

    def _send(self, message: bytes) -> None:
        with self._lock:
            try:
                self._connection.send_bytes(message)
            except OSError:  # gone, which the next reception shows
                return

    def _run(self) -> None:
        while True:
            try:
                question = self._connection.recv_bytes()
            except (OSError, EOFError):
                break
            self._send(_ANSWER + self._answer(question))
        self._on_alone()

    def _answer(self, question: bytes) -> bytes:
        try:
            return self._answers[question]()
        except Exception:  # this thread must live: it is what notices a dead supervisor
            _log.exception("no answer to the supervisor, which asked for %s", question.decode())
            return b""
