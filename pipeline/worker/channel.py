"""How a supervisor and one of its worker processes talk: a pair of sockets, open while both live.

The supervisor asks, one question at a time, and the process answers from a thread of its own. It
says by itself, once, that its start is through. The end of the other side closes the pair, however
it died, so each learns of it at once. Nothing listens on the network for this.
"""

import logging
import os
import queue
import socket
import threading
import time
from collections.abc import Callable, Mapping
from contextlib import suppress
from multiprocessing import Pipe
from multiprocessing.connection import Connection

_log = logging.getLogger(__name__)

METRICS, HEALTH, READY = b"metrics", b"health", b"ready"
YES, NO = b"1", b"0"
_STARTED = b"started"
_ANSWER = b"="
_END_S = 1.0  # for the last words of a process that has ended


def encode_verdict(good: bool, line: str) -> bytes:
    """Put the answer to HEALTH and READY into bytes."""
    return (YES if good else NO) + line.encode()


def decode_verdict(answer: bytes) -> tuple[bool, str]:
    """Undo `encode_verdict`."""
    return answer[:1] == YES, answer[1:].decode()


class SupervisorEnd:
    """The supervisor's end; usable from several threads.

    A thread of its own receives: a process that stands still in the middle of a message keeps
    nobody else waiting.

    Attributes:
        child_descriptor: Of the other end, for the process to inherit.
    """

    def __init__(self) -> None:
        self._ours, self._theirs = Pipe()
        self.child_descriptor = self._theirs.fileno()
        self._asking = threading.Lock()
        self._awaits_answer = False
        self._answers: queue.SimpleQueue[bytes | None] = queue.SimpleQueue()  # None: it is gone
        self._has_started = False
        self._start_is_over = threading.Event()
        self._receiver = threading.Thread(target=self._receive, name="channel", daemon=True)

    def handed_over(self) -> None:
        """Let go of the other end, once the process has it."""
        self._theirs.close()
        self._receiver.start()

    def ask(self, question: bytes, deadline_s: float) -> bytes | None:
        """Ask and wait for the answer; None where none comes in time or the process is gone."""
        until_s = time.monotonic() + deadline_s
        if not self._asking.acquire(timeout=deadline_s):
            return None
        try:
            # An answer that came too late is not this question's, and where none came yet a
            # process that stands still must not be sent ever more.
            if self._awaits_answer and self._next_answer(until_s) is None:
                return None
            self._ours.send_bytes(question)
            self._awaits_answer = True
            return self._next_answer(until_s)
        except OSError:
            return None
        finally:
            self._asking.release()

    def has_started(self) -> bool:
        """Tell whether the process has said that its start is through."""
        return self._has_started

    def wait_for_start(self, deadline_s: float) -> bool:
        """Wait until the start is through or the process gone; False where neither is in time."""
        return self._start_is_over.wait(deadline_s)

    def close(self) -> None:
        """Close this end, once all that an ended process said is received."""
        self._receiver.join(_END_S)
        # Ends the thread also where the other end is still open somewhere.
        with suppress(OSError), socket.socket(fileno=os.dup(self._ours.fileno())) as end:
            end.shutdown(socket.SHUT_RDWR)
        self._receiver.join()
        with self._asking:
            self._ours.close()

    def _next_answer(self, until_s: float) -> bytes | None:
        try:
            answer = self._answers.get(timeout=max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            return None
        self._awaits_answer = False
        return answer

    def _receive(self) -> None:
        try:
            while True:
                message = self._ours.recv_bytes()
                if message == _STARTED:
                    self._has_started = True
                    self._start_is_over.set()
                else:
                    self._answers.put(message.removeprefix(_ANSWER))
        except (OSError, EOFError):
            self._answers.put(None)
            self._start_is_over.set()


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
