"""Which of the brokers that are named take a connection, asked of all at once.

A machine that is off answers nothing, not even no. The client libraries try one server after the
other in an order of chance, and each that is silent costs them their whole timeout; so they are
given only those that answer. Private names of aiokafka are used.
"""

import asyncio
import queue
import socket
import threading
import time
from collections.abc import Sequence
from typing import Any

from aiokafka.client import AIOKafkaClient

GRACE_S = 0.3
"""How long the others may take once one has answered."""
FIRST_ANSWER_S = 5.0

_STOCK_BOOTSTRAP = AIOKafkaClient.bootstrap


def reach(servers: Sequence[str], timeout_s: float) -> tuple[list[str], dict[str, str]]:
    """Connect to every server once.

    Args:
        servers: Each `host:port`, IPv6 addresses in brackets.
        timeout_s: How long to wait for the first that takes the connection.

    Returns:
        Those that took it, in the order given; and what is wrong with the others.
    """
    answers: queue.SimpleQueue[tuple[str, str | None]] = queue.SimpleQueue()
    for server in set(servers):
        # No pool: its threads would have to be waited for.
        threading.Thread(
            target=lambda server=server: answers.put((server, _problem(server, timeout_s))),
            name=f"reach {server}",
            daemon=True,
        ).start()
    until_s = time.monotonic() + timeout_s
    said: dict[str, str | None] = {}
    while len(said) < len(set(servers)):
        try:
            server, problem = answers.get(timeout=max(0.0, until_s - time.monotonic()))
        except queue.Empty:
            break
        said[server] = problem
        if problem is None:
            until_s = min(until_s, time.monotonic() + GRACE_S)
    problems = {server: said.get(server, "no answer") for server in servers}
    reached = [server for server, problem in problems.items() if problem is None]
    return reached, {server: why for server, why in problems.items() if why is not None}


def _problem(server: str, timeout_s: float) -> str | None:
    host, port = server.rsplit(":", 1)
    host = host.removeprefix("[").removesuffix("]")  # brackets: IPv6
    try:
        # A name may stand for several addresses, each of which is given the timeout.
        addresses = socket.getaddrinfo(host, int(port), type=socket.SOCK_STREAM)
        socket.create_connection((host, int(port)), timeout_s / len(addresses)).close()
    except (OSError, UnicodeError) as exc:  # the latter: no name could be like that
        return str(exc)
    return None


def pass_over_silent_servers() -> None:
    """Make this process's aiokafka clients begin with servers that take a connection.

    Stock waits 40 s for each that is silent: a worker's partitions wait that long at a rebalance.
    """
    AIOKafkaClient.bootstrap = _bootstrap


async def _bootstrap(self: Any) -> None:
    servers: Sequence[str] = self._bootstrap_servers
    if not isinstance(servers, str) and len(servers) > 1:
        reached, _ = await asyncio.to_thread(reach, servers, FIRST_ANSWER_S)
        self._bootstrap_servers = reached or servers
    await _STOCK_BOOTSTRAP(self)
