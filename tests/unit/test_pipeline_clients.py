"""How the names of brokers reach those who connect to them."""

import socket
from pathlib import Path
from typing import Any

import pytest
from aiokafka.conn import collect_hosts
from faust.transport.drivers.aiokafka import server_list
from kafka.cluster import get_ip_port_afi
from yarl import URL

from pipeline.cluster.clients import aiokafka_options, bootstrap_servers, wait_for_kafka
from pipeline.settings import KafkaSettings


@pytest.mark.parametrize(
    ("host", "named"), [("::1", "[::1]"), ("127.0.0.1", "127.0.0.1"), ("127.0.0.1", "localhost")]
)
def test_a_broker_is_looked_for_at_its_address(host: str, named: str) -> None:
    """The brackets of an IPv6 address are none of it; of a name's addresses one is enough."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.create_server((host, 0), family=family) as server:
        kafka = KafkaSettings(bootstrap_servers=f"{named}:{server.getsockname()[1]}")

        assert wait_for_kafka(kafka) == kafka


def test_only_servers_that_take_a_connection_are_asked() -> None:
    """One that refuses is none; those that are left keep their order."""
    with (
        socket.create_server(("127.0.0.1", 0)) as one,
        socket.create_server(("::1", 0), family=socket.AF_INET6) as other,
    ):
        good = [f"[::1]:{other.getsockname()[1]}", f"127.0.0.1:{one.getsockname()[1]}"]
        kafka = KafkaSettings(bootstrap_servers=f"{good[0]},127.0.0.1:9, {good[1]}")

        assert bootstrap_servers(wait_for_kafka(kafka)) == good


@pytest.mark.parametrize(
    ("text", "password"),
    [("se cret", "se cret"), ("secret\n", "secret"), ("secret\r\n", "secret"), (" \n\n", " \n")],
    ids=["no line end", "one", "one of Windows", "all but one are its own"],
)
def test_the_line_end_of_a_password_file_is_no_part_of_it(
    tmp_path: Path, text: str, password: str
) -> None:
    """Editors end the last line; blanks may be meant."""
    file = tmp_path / "password"
    file.write_text(text, newline="")
    kafka = KafkaSettings(
        security_protocol="SASL_PLAINTEXT",
        sasl_mechanism="PLAIN",
        username="worker",
        password_file=file,
    )

    assert aiokafka_options(kafka)["sasl_plain_password"] == password


def test_the_libraries_understand_an_address_in_brackets() -> None:
    """aiokafka, kafka-python, and aiokafka behind Faust, which takes the brackets off."""
    expected: Any = ("::1", 9092, socket.AF_INET6)
    (server,) = bootstrap_servers(KafkaSettings(bootstrap_servers=" [::1]:9092"))

    assert collect_hosts([server]) == [expected]
    assert get_ip_port_afi(server) == expected
    assert server_list([URL(f"lrurec://{server}")], 0) == [server]
