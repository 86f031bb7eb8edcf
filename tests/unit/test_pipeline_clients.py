"""How the names of brokers reach those who connect to them."""

import socket
from typing import Any

import pytest
from aiokafka.conn import collect_hosts
from faust.transport.drivers.aiokafka import server_list
from kafka.cluster import get_ip_port_afi
from yarl import URL

from pipeline.cluster.clients import bootstrap_servers, wait_for_kafka
from pipeline.settings import KafkaSettings


@pytest.mark.parametrize(
    ("servers", "address"),
    [
        ("[::1]:9092", ("::1", 9092)),
        ("127.0.0.1:29092", ("127.0.0.1", 29092)),
        ("kafka:9092", ("kafka", 9092)),
    ],
)
def test_a_broker_is_looked_for_at_its_address(
    servers: str, address: tuple[str, int], monkeypatch: pytest.MonkeyPatch
) -> None:
    """The brackets of an IPv6 address are none of it."""
    asked: list[tuple[str, int]] = []

    def connect(where: tuple[str, int], timeout_s: float) -> socket.socket:
        asked.append(where)
        return socket.socket()

    monkeypatch.setattr(socket, "create_connection", connect)

    wait_for_kafka(KafkaSettings(bootstrap_servers=servers))

    assert asked == [address]


def test_the_libraries_understand_an_address_in_brackets() -> None:
    """aiokafka, kafka-python, and aiokafka behind Faust, which takes the brackets off."""
    expected: Any = ("::1", 9092, socket.AF_INET6)
    (server,) = bootstrap_servers(KafkaSettings(bootstrap_servers=" [::1]:9092"))

    assert collect_hosts([server]) == [expected]
    assert get_ip_port_afi(server) == expected
    assert server_list([URL(f"lrurec://{server}")], 0) == [server]
