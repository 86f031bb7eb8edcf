"""Commands before a Kafka with TLS, SASL and rights: what is refused is told by its cause."""

import gc
import logging
import subprocess
import sys
import time
from collections.abc import Iterator
from dataclasses import replace
from pathlib import Path
from typing import Any

import pytest

from pipeline.cluster.clients import kafka_admin
from pipeline.cluster.records import end_offsets, read_partitions
from pipeline.cluster.topics import (
    all_topics,
    changelog_name,
    check_topics,
    create_topics,
    require_topics,
)
from pipeline.engine.stop import ExitCode
from pipeline.errors import BrokerRefuses, BrokerUnavailable, SettingsInvalid, TopicMismatch
from pipeline.settings import KafkaSettings, Settings, settings_flags
from pipeline.users import block, read_user
from pipeline.verification.topics import KafkaTopics
from tests.bad_records import run_worker
from tests.kafka import send, unique_settings, wait_until
from tests.secured_kafka import USER, SecuredKafka, give_rights, secured_kafka

# kafka-python leaves a socket whose TLS handshake failed to the collector.
pytestmark = pytest.mark.filterwarnings("ignore::pytest.PytestUnraisableExceptionWarning")

KEY_WITH_PASSPHRASE = """\
-----BEGIN ENCRYPTED PRIVATE KEY-----
MIHsMFcGCSqGSIb3DQEFDTBKMCkGCSqGSIb3DQEFDDAcBAhX90VyYr7viAICCAAw
DAYIKoZIhvcNAgkFADAdBglghkgBZQMEASoEEAGlsy7ObOTXKu64x5GSvQwEgZDX
6IkLXxF7QhOelskhiBoJCOBjjoFlFfV6uVHBOMB/VwCBitjnS8hw0frXcXQlPc9x
gdpzvHJbKxW1s9B4ly2yibmcTuvA/GJ5w2lAZ8bPZp5dnPkPeEbmmKKUg0XKBB/S
vp0EVJ5OLO0Lob5LpNV25fPB4xOtgsfXHqQWJ3IDw5z65KCNCGyV9jpVbwt9jds=
-----END ENCRYPTED PRIVATE KEY-----
"""
"""Of nothing: only this test knows it."""
AT_ONCE_S = 5.0  # far below the timeout; a broker delays its answer to a wrong password


@pytest.fixture(scope="module")
def secured(tmp_path_factory: pytest.TempPathFactory) -> Iterator[SecuredKafka]:
    """One Kafka for this module; its plain listener is the administrator's."""
    with secured_kafka(tmp_path_factory.mktemp("secured")) as kafka:
        yield kafka


@pytest.fixture(autouse=True)
def quiet(caplog: pytest.LogCaptureFixture) -> None:
    """A captured line would keep the error in it, and so its socket, beyond the test."""
    caplog.set_level(logging.CRITICAL)


@pytest.fixture
def sasl_ssl(secured: SecuredKafka) -> KafkaSettings:
    """A connection by TLS and password, as it should be."""
    return KafkaSettings(
        bootstrap_servers=secured.sasl_ssl,
        security_protocol="SASL_SSL",
        username=USER,
        password_file=secured.password_file,
        ssl_ca_file=secured.ca_file,
    )


def refusal(kafka: KafkaSettings, *, final: bool = True) -> str:
    """What a connection ends by."""
    with pytest.raises(BrokerUnavailable) as caught, kafka_admin(kafka):
        pass
    assert isinstance(caught.value, BrokerRefuses) is final
    line = str(caught.value)
    del caught
    gc.collect()  # within this test, where its warning is expected
    assert "\n" not in line
    return line


def test_a_secured_kafka_is_reached(sasl_ssl: KafkaSettings) -> None:
    """By TLS and password; also where another of the named servers refuses."""
    wrong_name = sasl_ssl.bootstrap_servers.replace("localhost", "127.0.0.1")
    for servers in (sasl_ssl.bootstrap_servers, f"{wrong_name},{sasl_ssl.bootstrap_servers}"):
        with kafka_admin(replace(sasl_ssl, bootstrap_servers=servers)) as admin:
            assert admin.list_topics() is not None


def test_a_refused_connection_ends_at_once_by_its_cause(
    secured: SecuredKafka, sasl_ssl: KafkaSettings, tmp_path: Path
) -> None:
    """Password, mechanism and every kind of wrong certificate: waiting helps against none."""
    (tmp_path / "password").write_text("guessed")
    by_ip = sasl_ssl.bootstrap_servers.replace("localhost", "127.0.0.1")
    tls: dict[str, Any] = {"bootstrap_servers": secured.ssl, "ssl_ca_file": secured.ca_file}
    causes = {
        "Invalid username or password": replace(sasl_ssl, password_file=tmp_path / "password"),
        "UnsupportedSaslMechanism": replace(sasl_ssl, sasl_mechanism="SCRAM-SHA-512"),
        "self-signed certificate": replace(sasl_ssl, ssl_ca_file=secured.other_ca_file),
        "not valid for '127.0.0.1'": replace(sasl_ssl, bootstrap_servers=by_ip),
        "certificate required": KafkaSettings(security_protocol="SSL", **tls),
        "Invalid frame length": KafkaSettings(bootstrap_servers=secured.ssl),
    }

    for cause, kafka in causes.items():
        began = time.monotonic()
        line = refusal(kafka)
        assert cause in line
        assert f"kafka.security_protocol ({kafka.security_protocol})" in line
        assert time.monotonic() - began < AT_ONCE_S


def test_a_key_with_a_passphrase_is_a_wrong_setting(secured: SecuredKafka, tmp_path: Path) -> None:
    """Nobody is there to be asked for it."""
    key = tmp_path / "key.pem"
    key.write_text(KEY_WITH_PASSPHRASE)
    kafka = KafkaSettings(
        bootstrap_servers=secured.ssl,
        security_protocol="SSL",
        ssl_cert_file=secured.ca_file,
        ssl_key_file=key,
    )

    with pytest.raises(SettingsInvalid, match=rf"ssl_key_file .* without a passphrase, got {key}"):
        end_offsets(kafka, "any")


def test_a_refused_password_ends_a_trainer(sasl_ssl: KafkaSettings, tmp_path: Path) -> None:
    """It waits for a Kafka that is away, but no waiting helps against this."""
    settings = unique_settings(sasl_ssl.bootstrap_servers, tmp_path)
    (tmp_path / "password").write_text("guessed")
    kafka = replace(sasl_ssl, password_file=tmp_path / "password")

    done = subprocess.run(
        [
            sys.executable,
            "-m",
            "pipeline",
            "trainer",
            *settings_flags(replace(settings, kafka=kafka)),
        ],
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )

    assert done.returncode == 1
    assert "Invalid username or password" in done.stderr.splitlines()[-1]


def test_a_connection_that_is_closed_without_a_word_is_told(secured: SecuredKafka) -> None:
    """TLS before a plain port, say: it may be a broker that stops, so it is tried until the end."""
    kafka = KafkaSettings(
        bootstrap_servers=secured.admin, security_protocol="SSL", connect_timeout_s=1.0
    )

    assert "Handshake failed" in refusal(kafka, final=False)


# --- rights


@pytest.fixture
def shop(secured: SecuredKafka, tmp_path: Path) -> Settings:
    """Topics of this test alone, as their administrator made them, and a user without rights."""
    own = unique_settings(secured.admin, tmp_path)
    create_topics(own)
    kafka = KafkaSettings(
        bootstrap_servers=secured.sasl,
        security_protocol="SASL_PLAINTEXT",
        username=USER,
        password_file=secured.password_file,
    )
    return replace(own, kafka=kafka)


def names_of(settings: Settings) -> list[str]:
    """All topics of these settings."""
    return [topic.name for topic in all_topics(settings)]


def rights_missing(settings: Settings) -> list[tuple[str, str]]:
    """What `lrurec topics check` says about rights; nothing else may be wrong."""
    said = check_topics(settings)
    assert all(one.fatal and one.fact == "rights" and one.got == "none" for one in said)
    return [(one.topic, one.expected) for one in said]


def test_topics_that_may_not_be_described_are_not_called_missing(shop: Settings) -> None:
    """Kafka tells nobody without the right whether a topic is there: creating it is no remedy."""
    assert rights_missing(shop) == [(name, "Describe") for name in names_of(shop)]
    for ask in (
        lambda: create_topics(shop),
        lambda: require_topics(shop),
        lambda: end_offsets(shop.kafka, shop.topics.interactions),
    ):
        with pytest.raises(TopicMismatch, match="give this program the right Describe") as caught:
            ask()
        assert "create" not in str(caught.value)


def test_settings_that_may_not_be_described_are_told(secured: SecuredKafka, shop: Settings) -> None:
    """Kafka answers without a word of why; a worker does not start, `verify` cannot judge."""
    give_rights(secured, names_of(shop), "DESCRIBE")
    expected = [(name, "DescribeConfigs") for name in names_of(shop)]

    wait_until(lambda: rights_missing(shop) == expected, "the rights", 10)

    for ask in (
        lambda: require_topics(shop),
        lambda: KafkaTopics(shop).is_compacted(shop.topics.interactions),
    ):
        with pytest.raises(TopicMismatch, match="give this program the right DescribeConfigs"):
            ask()


def test_a_topic_that_may_not_be_read_is_told(secured: SecuredKafka, shop: Settings) -> None:
    """One line that names topic and right."""
    topic = shop.topics.items
    send(secured.admin, topic, [(0, b"sku", b"{}")])
    give_rights(secured, names_of(shop), "DESCRIBE")
    wait_until(lambda: (topic, "Describe") not in rights_missing(shop), "the right", 10)

    with pytest.raises(BrokerUnavailable, match=rf"reading {topic}.* the right Read \(to read\)"):
        list(read_partitions(shop.kafka, topic))


def test_the_rights_of_a_worker_are_enough_for_its_topics(
    secured: SecuredKafka, shop: Settings
) -> None:
    """Those that docs/topics.md lists: whoever may read or write may describe."""
    names, changelog = shop.topics, changelog_name(shop.worker.app_id)
    read = [names.interactions, names.models, names.items, names.users, changelog]
    give_rights(secured, read, "READ")
    give_rights(secured, [names.recommendations, names.dead_letters, changelog], "WRITE")
    give_rights(secured, names_of(shop), "DESCRIBE_CONFIGS")

    wait_until(lambda: not rights_missing(shop), "the rights", 10)

    assert require_topics(shop) == 4


def test_a_group_that_may_not_be_joined_ends_a_worker_in_one_line(
    secured: SecuredKafka, shop: Settings
) -> None:
    """With the right on every topic and none on the group."""
    give_rights(secured, names_of(shop), "READ", "WRITE", "DESCRIBE_CONFIGS")
    wait_until(lambda: not rights_missing(shop), "the rights", 10)

    code, lines = run_worker(shop)

    assert code == ExitCode.KAFKA
    assert "joining the group: Kafka did not answer or refused (GroupAuth" in lines[-1]
    assert "the right Read (worker) or Describe (verify) on the group" in lines[-1]


def test_the_rights_of_the_command_for_users_are_enough(
    secured: SecuredKafka, shop: Settings
) -> None:
    """Read and Write on the users topic, as docs/topics.md lists; without Write a line says so."""
    topic = shop.topics.users
    give_rights(secured, [topic], "READ")
    wait_until(lambda: (topic, "Describe") not in rights_missing(shop), "the right", 10)
    assert read_user(shop, "u-1").records == ()
    with pytest.raises(BrokerUnavailable, match=r"the right .*Write"):
        block(shop, "u-1", ["a"])

    give_rights(secured, [topic], "WRITE")

    def is_sent() -> bool:
        try:
            return len(block(shop, "u-1", ["a"]).records) == shop.topics.partitions
        except BrokerUnavailable:
            return False

    wait_until(is_sent, "the right", 10)
    assert read_user(shop, "u-1").command.blocked_ids == ["a"]
