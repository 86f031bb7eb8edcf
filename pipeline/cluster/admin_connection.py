"""The first connection of an administration client, which says why it fails.

kafka-python tries until its deadline, whatever a broker answers, and then says only that the time
is over. Here what went wrong stands in the error, and a refusal that no waiting helps against (of a
password, of a certificate) ends it at once.
"""

from typing import Any

from kafka import KafkaAdminClient
from kafka.errors import KafkaError, KafkaTimeoutError
from kafka.net.compat import KafkaNetClient
from kafka.net.manager import KafkaConnectionManager
from kafka.net.selector import NetworkSelector

from pipeline.cluster.rights import in_words


class NotConnected(Exception):
    """No broker took the connection; the message says why the last one did not.

    Attributes:
        final: Whether each would answer the same again.
    """

    def __init__(self, message: str, *, final: bool) -> None:
        super().__init__(message)
        self.final = final


def connect_admin(options: dict[str, Any]) -> KafkaAdminClient:
    """Connect.

    Args:
        options: Those of `KafkaAdminClient`.

    Raises:
        NotConnected: Every broker that was named refuses for good, or none answered in time.
        kafka.errors.KafkaError: As `KafkaAdminClient` raises it.
    """
    clients: list[KafkaNetClient] = []

    def make_client(**config: Any) -> KafkaNetClient:
        net = NetworkSelector(**config)
        manager = _TellingManager(net, **config)
        clients.append(KafkaNetClient(net=net, manager=manager, **config))
        return clients[-1]

    try:
        return KafkaAdminClient(**options, kafka_client=make_client)
    except KafkaError as exc:
        for client in clients:
            client.close()
        problem = next((client._manager.problem for client in clients), None)
        if problem is not None and (exc is problem or isinstance(exc, KafkaTimeoutError)):
            final = exc is problem and _is_final(problem)
            raise NotConnected(in_words(problem), final=final) from problem
        raise


class _TellingManager(KafkaConnectionManager):  # type: ignore[misc]  # the library has no types
    """Keeps why connections fail, and gives up once every server that was named refuses for good.

    Attributes:
        problem: The last failure, a refusal rather than a lost connection; None: there was none.
    """

    def __init__(self, net: NetworkSelector, **config: Any) -> None:
        super().__init__(net, **config)
        self.problem: Exception | None = None
        self._refusing: set[str] = set()

    def get_connection(self, node_id: int | str, *args: Any, **options: Any) -> Any:
        """Return the connection as ever, or raise what the servers refuse by."""
        named = {broker.node_id for broker in self.cluster.bootstrap_brokers()}
        if node_id in named and named == self._refusing:
            assert self.problem is not None
            raise self.problem
        connection = super().get_connection(node_id, *args, **options)
        for future in (connection.init_future, connection.close_future):
            future.add_errback(lambda error: self._keep(node_id, error))
        return connection

    async def _build_transport(self, *args: Any, **options: Any) -> Any:
        """Connect, and hand over what a broker says before it closes the connection.

        kafka-python 3.0 drops an answer that comes together with the connection's end, which is how
        brokers refuse.
        """
        transport = await super()._build_transport(*args, **options)
        receive = transport._sock_recv

        def receive_before_end() -> tuple[bytes, Exception | None]:
            data, error = receive()
            return data, None if data else error  # the end comes again

        transport._sock_recv = receive_before_end
        return transport

    def _keep(self, node_id: int | str, error: Exception) -> None:
        if _is_final(error):
            self.problem = error
            self._refusing.add(str(node_id))
        elif not self._refusing:
            self.problem = error


def _is_final(error: Exception) -> bool:
    """Whether a broker would answer the same a moment later.

    TLS is told by the words alone: an alert of the other side has no class of its own. One that
    ends in mid-word may be a broker that is just being stopped.
    """
    if "[SSL: " in str(error):
        return "EOF" not in str(error)
    return isinstance(error, KafkaError) and not error.retriable
