"""The topics as `lrurec verify` reads them."""

from collections.abc import Iterable, Iterator, Mapping
from dataclasses import dataclass
from typing import Protocol

from kafka import TopicPartition
from kafka.admin import ConfigResource, ConfigResourceType

from pipeline.cluster import records as kafka_records
from pipeline.cluster.clients import kafka_admin
from pipeline.cluster.records import Record
from pipeline.cluster.rights import grant
from pipeline.errors import TopicMismatch
from pipeline.settings import Settings


class Topics(Protocol):
    """What is asked of a cluster. Offsets come by partition."""

    def committed_offsets(self) -> Mapping[int, int]:
        """Return what the worker's group has committed of the interactions."""
        ...

    def first_offsets(self, topic: str) -> Mapping[int, int]:
        """Return the first offset that still exists of each partition."""
        ...

    def end_offsets(self, topic: str) -> Mapping[int, int]:
        """Return where each partition ends, or the first transaction that is still open."""
        ...

    def is_compacted(self, topic: str) -> bool:
        """Tell whether records are taken out of the topic's middle."""
        ...

    def read(
        self,
        topic: str,
        *,
        start: Mapping[int, int] | None = None,
        end: Mapping[int, int] | None = None,
    ) -> Iterable[Record]:
        """Yield the records up to the topic's end, in the order of each partition.

        As consumers and workers do: those of aborted and of open transactions are left out. What
        retention removes before it was read is left out without a word.

        Args:
            topic: Name of the topic.
            start: Offset to start from; the first one where it says nothing.
            end: Offset to stop before; the topic's end where it says nothing.
        """
        ...


@dataclass(frozen=True)
class KafkaTopics:
    """The cluster of the settings.

    Raises (all methods):
        BrokerUnavailable: No answer.
        TopicMismatch: There is no such topic, or no right to it.
    """

    settings: Settings

    def committed_offsets(self) -> Mapping[int, int]:
        """Return what the worker's group has committed of the interactions."""
        group, topic = self.settings.worker.app_id, self.settings.topics.interactions
        with kafka_admin(self.settings.kafka) as admin:
            found = admin.list_group_offsets(group)[group]
        return {
            tp.partition: at.offset
            for tp, at in found.items()
            if isinstance(tp, TopicPartition) and tp.topic == topic and at.offset >= 0
        }

    def first_offsets(self, topic: str) -> Mapping[int, int]:
        """Return the first offset that still exists of each partition."""
        return kafka_records.first_offsets(self.settings.kafka, topic)

    def end_offsets(self, topic: str) -> Mapping[int, int]:
        """Return where each partition ends, or the first transaction that is still open."""
        return kafka_records.end_offsets(self.settings.kafka, topic, committed=True)

    def is_compacted(self, topic: str) -> bool:
        """Tell whether records are taken out of the topic's middle."""
        with kafka_admin(self.settings.kafka) as admin:
            resource = ConfigResource(ConfigResourceType.TOPIC, topic)
            found = admin.describe_configs([resource], config_filter="all")["topic"][topic]
        if not found:
            msg = (
                f"topic {topic}: expected the right DescribeConfigs at "
                f"{self.settings.kafka.bootstrap_servers}, got none; {grant('DescribeConfigs')}"
            )
            raise TopicMismatch(msg)
        return "compact" in str(found["cleanup.policy"]["value"])

    def read(
        self,
        topic: str,
        *,
        start: Mapping[int, int] | None = None,
        end: Mapping[int, int] | None = None,
    ) -> Iterator[Record]:
        """Yield the committed records up to the topic's end, in the order of each partition."""
        kafka = self.settings.kafka
        return kafka_records.read_partitions(kafka, topic, start, end, committed=True)
