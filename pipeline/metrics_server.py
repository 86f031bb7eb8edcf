"""A small HTTP server for Prometheus and for health checks."""

import errno
import logging
import socket
import sys
import threading
from collections.abc import Callable, Iterable, Iterator
from contextlib import contextmanager, suppress
from socketserver import TCPServer, ThreadingMixIn
from typing import Any
from wsgiref.simple_server import WSGIRequestHandler, WSGIServer, make_server
from wsgiref.types import StartResponse, WSGIApplication, WSGIEnvironment

from prometheus_client import CollectorRegistry, disable_created_metrics, make_wsgi_app

from pipeline.errors import PortTaken, SettingsInvalid

_log = logging.getLogger(__name__)

MOST_CLIENTS = 32
"""Connections at a time; each has a thread."""

Answer = Callable[[], tuple[bool, str]]


@contextmanager
def serve(
    registry: CollectorRegistry, host: str, port: int, *, health: Answer, ready: Answer
) -> Iterator[None]:
    """Answer /metrics, /healthz and /readyz for the length of a `with` block; port 0 is off.

    Of more than `MOST_CLIENTS` connections the oldest are closed, so whoever asks is answered,
    however many others send their requests slowly or never.

    Args:
        registry: What /metrics shows.
        host: The address to listen on.
        port: The port to listen on.
        health: Whether the process is fine, and a line about it; asked for every /healthz, in a
            thread of the server. No is answered with status 503.
        ready: The same for /readyz: whether it does its work now.

    Raises:
        PortTaken: Another program listens there.
        SettingsInvalid: The address is none of this machine, or the port is not allowed.
    """
    if port == 0:
        yield
        return
    # A second series for every counter, which nobody here asks for.
    disable_created_metrics()  # type: ignore[no-untyped-call]  # the library types it not
    metrics: WSGIApplication = make_wsgi_app(registry)
    answers = {"/healthz": health, "/readyz": ready}

    def answer(environ: WSGIEnvironment, start_response: StartResponse) -> Iterable[bytes]:
        path = environ["PATH_INFO"]
        if path == "/metrics":
            return metrics(environ, start_response)
        if path in answers:
            good, line = answers[path]()
            status = "200 OK" if good else "503 Service Unavailable"
        else:
            status, line = "404 Not Found", "there are /metrics, /healthz and /readyz"
        start_response(status, [("Content-Type", "text/plain; charset=utf-8")])
        return [f"{line}\n".encode()]

    server_class = _Server6 if ":" in host else _Server
    try:
        server = make_server(host, port, answer, server_class, _Handler)
    except OSError as error:
        if error.errno == errno.EADDRINUSE:
            msg = (
                f"metrics.port: another program listens on {host}:{port}; choose another port or 0"
            )
            raise PortTaken(msg) from error
        msg = f"metrics.host and metrics.port: cannot listen on {host}:{port}: {error.strerror}"
        raise SettingsInvalid(msg) from error
    thread = threading.Thread(
        target=server.serve_forever, name="metrics", kwargs={"poll_interval": 0.1}, daemon=True
    )
    thread.start()
    try:
        yield
    finally:
        server.shutdown()
        thread.join()
        server.server_close()


class _Server(ThreadingMixIn, WSGIServer):
    daemon_threads = True

    def __init__(self, *args: Any) -> None:
        self._clients: dict[socket.socket, None] = {}  # oldest first
        self._clients_lock = threading.Lock()
        super().__init__(*args)

    def process_request(self, request: Any, client_address: Any) -> None:
        with self._clients_lock:
            self._clients[request] = None
            if len(self._clients) > MOST_CLIENTS:
                oldest = next(iter(self._clients))
                del self._clients[oldest]
                with suppress(OSError):  # its client may have gone
                    oldest.shutdown(socket.SHUT_RDWR)  # its thread ends by that, and closes it
        super().process_request(request, client_address)

    def shutdown_request(self, request: Any) -> None:
        with self._clients_lock:
            self._clients.pop(request, None)
        super().shutdown_request(request)

    def server_bind(self) -> None:
        # Not the parent's: it asks DNS for this machine's name, which may take long or fail.
        TCPServer.server_bind(self)
        self.server_name, self.server_port = str(self.server_address[0]), self.server_address[1]
        self.setup_environ()

    def handle_error(self, request: Any, client_address: Any) -> None:
        """Say nothing of a client that goes away or never asks, as load balancers do."""
        if not isinstance(sys.exception(), OSError):  # a timeout is one
            _log.exception("no answer to a request from %s", client_address)


class _Server6(_Server):
    address_family = socket.AF_INET6


class _Handler(WSGIRequestHandler):
    timeout = 10  # seconds that a client may say nothing

    def log_message(self, format: str, *args: Any) -> None:
        """Say nothing: a scrape is no news."""
