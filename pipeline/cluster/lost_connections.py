"""Connections that are lost while something is about to be sent over them.

A transport of uvloop whose connection was lost raises RuntimeError where asyncio's takes what is
written and drops it. aiokafka notices a loss only some turns of the loop later; what it sends
before ends in that error, which it expects nowhere. Its task that refreshes the cluster's metadata
ends by it without a word, and whoever waits for a refresh then waits for ever: a group's member
that looks for its coordinator sends no heartbeat any more. Private names of aiokafka are used.
"""

from collections.abc import Callable
from functools import wraps
from typing import Any

from aiokafka.conn import AIOKafkaConnection, CloseReason
from aiokafka.errors import KafkaConnectionError

_STOCK = {name: getattr(AIOKafkaConnection, name) for name in ("send", "_send_sasl_token")}


def tolerate_lost_connections() -> None:
    """Make this process's aiokafka clients see a lost connection as they expect to see it."""
    for name, send in _STOCK.items():
        setattr(AIOKafkaConnection, name, _told_as_loss(send))


def _told_as_loss(send: Callable[..., Any]) -> Callable[..., Any]:
    @wraps(send)
    def send_or_tell(self: AIOKafkaConnection, *args: Any, **kwargs: Any) -> Any:
        writer = self._writer
        try:
            return send(self, *args, **kwargs)
        except RuntimeError as error:
            if writer is None or not writer.is_closing():
                raise
            self.close(reason=CloseReason.CONNECTION_BROKEN, exc=error)
            msg = f"Connection at {self.host}:{self.port} was lost"
            raise KafkaConnectionError(msg) from error

    return send_or_tell
