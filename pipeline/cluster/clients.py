"""What `KafkaSettings` mean to each client library, and where the errors of these end.

Three libraries speak to Kafka here: kafka-python for administration, aiokafka for records, Faust
for the stream. What an operator can act on leaves as `BrokerUnavailable`.
"""

import ssl
import time
from collections.abc import Iterator
from contextlib import contextmanager
from dataclasses import replace
from typing import Any, NoReturn

import aiokafka.errors
from kafka import KafkaAdminClient
from kafka.errors import KafkaError

from pipeline.cluster.admin_connection import NotConnected, connect_admin
from pipeline.cluster.reachable import reach
from pipeline.cluster.rights import in_words
from pipeline.errors import BrokerRefuses, BrokerUnavailable, SettingsInvalid
from pipeline.settings import KafkaSettings

POLL_S = 0.1


class Password(str):
    """A password that does not show in logs: client libraries log their whole configuration."""

    __slots__ = ()

    def __repr__(self) -> str:
        return "'***'"


def kafka_python_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Return the options that every kafka-python client (admin, producer) understands.

    Raises:
        SettingsInvalid: A file of certificates or the password cannot be read.
    """
    options = aiokafka_options(kafka)
    return {**options, "bootstrap_timeout_ms": round(kafka.connect_timeout_s * 1000)}


def aiokafka_options(kafka: KafkaSettings) -> dict[str, Any]:
    """Return the options that aiokafka's producer and consumer both understand.

    Raises:
        SettingsInvalid: A file of certificates or the password cannot be read.
    """
    options: dict[str, Any] = {
        "bootstrap_servers": bootstrap_servers(kafka),
        "security_protocol": kafka.security_protocol,
    }
    if kafka.security_protocol in ("SSL", "SASL_SSL"):
        options["ssl_context"] = _ssl_context(kafka)
    if kafka.security_protocol.startswith("SASL"):
        options["sasl_mechanism"] = kafka.sasl_mechanism
        options["sasl_plain_username"] = kafka.username
        options["sasl_plain_password"] = _password(kafka)
    return options


def faust_credentials(kafka: KafkaSettings) -> Any:
    """Return Faust's `broker_credentials`: None where the connection is not secured.

    Raises:
        SettingsInvalid: A file of certificates or the password cannot be read.
    """
    from faust.auth import SASLCredentials, SSLCredentials  # here: half a second that few need

    context = _ssl_context(kafka) if kafka.security_protocol in ("SSL", "SASL_SSL") else None
    if kafka.security_protocol.startswith("SASL"):
        return SASLCredentials(
            username=kafka.username,
            password=_password(kafka),
            ssl_context=context,
            mechanism=kafka.sasl_mechanism,
        )
    return None if context is None else SSLCredentials(context)


def bootstrap_servers(kafka: KafkaSettings) -> list[str]:
    """Return the brokers to ask first, each `host:port`."""
    return [server.strip() for server in kafka.bootstrap_servers.split(",")]


def _password(kafka: KafkaSettings) -> Password:
    assert kafka.password_file is not None  # KafkaSettings checks that SASL comes with one
    try:
        text = kafka.password_file.read_text(encoding="utf-8")
    except (OSError, UnicodeError) as exc:
        msg = f"kafka.password_file must be a readable text file, got {kafka.password_file}: {exc}"
        raise SettingsInvalid(msg) from exc
    return Password(text.removesuffix("\n").removesuffix("\r"))


def _ssl_context(kafka: KafkaSettings) -> ssl.SSLContext:
    try:
        context = ssl.create_default_context(cafile=kafka.ssl_ca_file)
        if kafka.ssl_cert_file is not None:
            context.load_cert_chain(
                kafka.ssl_cert_file, kafka.ssl_key_file, password=lambda: _refuse_passphrase(kafka)
            )
    except OSError as exc:  # ssl.SSLError is one
        files = (kafka.ssl_ca_file, kafka.ssl_cert_file, kafka.ssl_key_file)
        msg = (
            f"kafka.ssl_*_file must be readable PEM files, got {', '.join(map(str, files))}: {exc}"
        )
        raise SettingsInvalid(msg) from exc
    return context


def _refuse_passphrase(kafka: KafkaSettings) -> NoReturn:
    """End what OpenSSL would ask a terminal for, which a service has not."""
    msg = f"kafka.ssl_key_file must be a key without a passphrase, got {kafka.ssl_key_file}"
    raise SettingsInvalid(msg)


def wait_for_kafka(kafka: KafkaSettings) -> KafkaSettings:
    """Wait until one of the brokers takes a connection.

    Returns:
        The same settings, but of the brokers to ask first only those that take one now.

    Raises:
        BrokerUnavailable: None did within `connect_timeout_s`.
    """
    deadline = time.monotonic() + kafka.connect_timeout_s
    # One that refuses, since it starts, is asked again though another is silent.
    once_s = min(kafka.connect_timeout_s, max(1.0, kafka.connect_timeout_s / 3))
    while True:
        reached, problems = reach(bootstrap_servers(kafka), once_s)
        if reached:
            return replace(kafka, bootstrap_servers=",".join(reached))
        if time.monotonic() > deadline:
            said = "; ".join(f"{server}: {problem}" for server, problem in problems.items())
            msg = (
                f"no Kafka within {kafka.connect_timeout_s:g} s ({said}): "
                "check --kafka.bootstrap-servers, or start the local one: lrurec broker start"
            )
            raise BrokerUnavailable(msg)
        time.sleep(POLL_S)


@contextmanager
def kafka_admin(kafka: KafkaSettings) -> Iterator[KafkaAdminClient]:
    """Connect for administration; any error of Kafka inside leaves as `BrokerUnavailable`.

    One that no waiting helps against, while connecting, as its `BrokerRefuses`.
    """
    reached = wait_for_kafka(kafka)
    try:
        admin = connect_admin(kafka_python_options(reached))
        try:
            yield admin
        finally:
            admin.close()
    except NotConnected as exc:
        msg = (
            f"Kafka at {kafka.bootstrap_servers} does not take this program's connection: {exc}; "
            f"see to the broker, and to kafka.security_protocol ({kafka.security_protocol}) with "
            "the settings that go with it"
        )
        raise (BrokerRefuses if exc.final else BrokerUnavailable)(msg) from exc
    except KafkaError as exc:
        msg = f"Kafka at {kafka.bootstrap_servers}: {in_words(exc)}"
        raise BrokerUnavailable(msg) from exc


@contextmanager
def kafka_errors(doing: str, kafka: KafkaSettings) -> Iterator[None]:
    """Let any error of aiokafka inside leave as `BrokerUnavailable`, with what was being done."""
    try:
        yield
    except aiokafka.errors.KafkaError as exc:
        msg = f"{doing} at {kafka.bootstrap_servers}: {in_words(exc)}"
        raise BrokerUnavailable(msg) from exc
