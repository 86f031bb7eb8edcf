"""The local Kafka: real processes, started and stopped, killed and repaired."""

from pipeline.settings import Settings
from tests.kafka import admin_client


def test_each_test_gets_settings_that_lead_to_a_running_kafka(settings: Settings) -> None:
    """The suite's broker answers at the address of a test's settings."""
    with admin_client(settings.kafka.bootstrap_servers) as admin:
        brokers = admin.describe_cluster()["brokers"]

    assert len(brokers) >= 1
