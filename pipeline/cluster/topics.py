"""Every topic, one row each: name, what it carries, partitions, cleanup and retention.

The interactions topic may be the user's own and exist already. Then its partition count rules, and
every topic that is keyed by user takes the same count: state, changelog and recommendation of a
user live on the partition number that the user's events arrive on. What exists is never altered.
"""

import logging
from collections.abc import Mapping
from dataclasses import replace

from kafka import KafkaAdminClient
from kafka.admin import ConfigResource, ConfigResourceType
from kafka.errors import NoError, TopicAlreadyExistsError, for_code

from pipeline.cluster.clients import kafka_admin
from pipeline.cluster.rights import TOPIC_REFUSED
from pipeline.cluster.topic_differences import Difference, FoundTopic, Topic, find_differences
from pipeline.errors import TopicMismatch
from pipeline.settings import KafkaSettings, Settings

_log = logging.getLogger(__name__)

TABLE_NAME = "users"
"""Name of the worker's table; its changelog is `{app_id}-users-changelog`, as Faust spells it."""

NO_ID = "00000000-0000-0000-0000-000000000000"  # of a cluster that is older than topic ids

DAY_MS = 86_400_000
HOUR_MS = 3_600_000
FOREVER = "-1"
# A record that just fitted the interactions topic grows by headers, and by what its batch-mates
# did for its compression.
DEAD_LETTER_BYTES = 16 * 1024 * 1024
# A full batch of a worker, 900,000 bytes, and what compression may add to it.
LEAST_MESSAGE_BYTES = 1_000_000
CHANGELOG_CONFIG = {
    "cleanup.policy": "compact",
    # Rows are overwritten all the time: segments close soon, so that compaction has work to do, but
    # not on what a restore that is under way may still have to read.
    "segment.bytes": str(64 * 1024 * 1024),
    "segment.ms": str(HOUR_MS),
    "min.compaction.lag.ms": str(HOUR_MS),
    # A worker that was away for less than this long still learns which users were deleted.
    "delete.retention.ms": str(30 * DAY_MS),
}


def changelog_name(app_id: str) -> str:
    """Return the name of the changelog topic of the worker's table."""
    return f"{app_id}-{TABLE_NAME}-changelog"


def all_topics(settings: Settings, partitions: int | None = None) -> tuple[Topic, ...]:
    """Return every topic of these settings, the interactions first and the changelog last.

    Args:
        settings: Names, counts and the application id.
        partitions: Partitions of the topics keyed by user; None: as the settings say.
    """
    names = settings.topics
    count = partitions or names.partitions
    return (
        Topic(
            name=names.interactions,
            setting="topics.interactions",
            what="one click of a user on an item, key: user id",
            partitions=count,
            # The trainer learns from all of it.
            config={
                "cleanup.policy": "delete",
                "retention.ms": FOREVER,
                "retention.bytes": FOREVER,
            },
        ),
        Topic(
            name=names.recommendations,
            setting="topics.recommendations",
            what="the newest recommendations of a user, key: user id",
            partitions=count,
            config={"cleanup.policy": "compact,delete", "retention.ms": str(30 * DAY_MS)},
            least_message_bytes=LEAST_MESSAGE_BYTES,
        ),
        Topic(
            name=names.dead_letters,
            setting="topics.dead_letters",
            what="a record that could not be used, with the reason",
            partitions=count,
            config={
                "cleanup.policy": "delete",
                "retention.ms": str(30 * DAY_MS),
                "max.message.bytes": str(DEAD_LETTER_BYTES),
            },
            least_message_bytes=LEAST_MESSAGE_BYTES,
        ),
        Topic(
            name=names.models,
            setting="topics.models",
            what="a release to serve from now on",
            partitions=1,
            keyed_by_user=False,
            config={"cleanup.policy": "compact"},
        ),
        Topic(
            name=names.items,
            setting="topics.items",
            what="title and availability of an item, key: item id",
            partitions=1,
            keyed_by_user=False,
            config={
                "cleanup.policy": "compact",
                # With its tombstone gone, a withdrawn item would be as one that was never named:
                # available to every worker that starts later.
                "delete.retention.ms": str(100 * 365 * DAY_MS),
            },
        ),
        Topic(
            name=names.users,
            setting="topics.users",
            what="what holds of a user: forgotten, blocked items, key: user id",
            partitions=count,
            config={
                "cleanup.policy": "compact",
                # As of items: a blocked item would be as one that never was blocked.
                "delete.retention.ms": str(100 * 365 * DAY_MS),
            },
        ),
        Topic(
            name=changelog_name(settings.worker.app_id),
            setting="worker.app_id",
            what="the state row of a user, key: user id",
            partitions=count,
            config=CHANGELOG_CONFIG,
            least_message_bytes=LEAST_MESSAGE_BYTES,
        ),
    )


def create_topics(settings: Settings) -> list[str]:
    """Create the topics that do not exist; what exists stays as it is.

    Returns:
        Names of the created topics.

    Raises:
        BrokerUnavailable: No answer from Kafka, or it refused.
        TopicMismatch: A topic that existed already cannot be used as it is.
    """
    with kafka_admin(settings.kafka) as admin:
        existing = _describe(admin, settings)
        topics = _wanted(settings, existing)
        differences = find_differences(topics, existing, settings.kafka.bootstrap_servers)
        _raise_fatal([difference for difference in differences if difference.fact == "rights"])
        wanted = {
            topic.name: {
                "num_partitions": topic.partitions,
                "replication_factor": settings.topics.replication_factor,
                "configs": dict(topic.config),
            }
            for topic in topics
            if topic.name not in existing
        }
        if wanted:
            for made in admin.create_topics(wanted, raise_errors=False)["topics"]:
                # One that another program made meanwhile is judged below.
                if made["error_code"] not in (NoError.errno, TopicAlreadyExistsError.errno):
                    msg = (
                        f"topic {made['name']}: cannot be created at "
                        f"{settings.kafka.bootstrap_servers}: "
                        f"{made['error_message'] or for_code(made['error_code']).__name__}"
                    )
                    raise TopicMismatch(msg)
            admin.wait_for_topics(list(wanted))
        _raise_fatal(_differences(settings, _describe_whole(admin, settings)))
    return list(wanted)


def existing_topics(settings: Settings) -> dict[str, int]:
    """Return the topics of these settings that exist, with their partition counts.

    Raises:
        BrokerUnavailable: No answer from Kafka.
    """
    with kafka_admin(settings.kafka) as admin:
        found = _describe(admin, settings)
    return {name: topic.partitions for name, topic in found.items() if topic.partitions}


def topic_id(kafka: KafkaSettings, name: str) -> str:
    """Return what tells a topic from one that is made anew under its name, or NO_ID.

    Raises:
        BrokerUnavailable: No answer.
    """
    with kafka_admin(kafka) as admin:
        (topic,) = admin.describe_topics([name])
    return str(topic.get("topic_id", NO_ID))


def may_be_same(topic_id: str, other_id: str) -> bool:
    """Tell whether two ids can be of one topic; one that is not known can be any."""
    return topic_id == other_id or NO_ID in (topic_id, other_id)


def check_topics(settings: Settings) -> list[Difference]:
    """Compare every topic with what it should be, the gravest differences first.

    Raises:
        BrokerUnavailable: No answer from Kafka.
    """
    with kafka_admin(settings.kafka) as admin:
        return _differences(settings, _describe_whole(admin, settings))


def require_topics(settings: Settings, *, log_notes: bool = True) -> int:
    """Make sure that a worker can run on the topics as they are.

    Args:
        settings: All settings.
        log_notes: Whether to log what is merely odd.

    Returns:
        Partitions of the topics keyed by user.

    Raises:
        BrokerUnavailable: No answer from Kafka.
        TopicMismatch: A topic is missing or unfit; the message has topic, expected, got and remedy.
    """
    with kafka_admin(settings.kafka) as admin:
        found = _describe_whole(admin, settings)
    differences = _differences(settings, found)
    _raise_fatal(differences)
    for difference in differences if log_notes else ():
        _log.warning("%s", difference)
    return found[settings.topics.interactions].partitions


def _raise_fatal(differences: list[Difference]) -> None:
    fatal = [difference for difference in differences if difference.fatal]
    if fatal:
        more = f" (and {len(fatal) - 1} more: lrurec topics check)" if len(fatal) > 1 else ""
        msg = f"{fatal[0]}{more}"
        raise TopicMismatch(msg)


def _differences(settings: Settings, found: Mapping[str, FoundTopic]) -> list[Difference]:
    return find_differences(
        _wanted(settings, found),
        found,
        settings.kafka.bootstrap_servers,
        replicas=settings.topics.replication_factor,
    )


def _wanted(settings: Settings, found: Mapping[str, FoundTopic]) -> tuple[Topic, ...]:
    source = found.get(settings.topics.interactions)
    return all_topics(settings, source.partitions if source else None)


def _describe(admin: KafkaAdminClient, settings: Settings) -> dict[str, FoundTopic]:
    """Return those topics that exist, or may for all that this user may know."""
    names = [topic.name for topic in all_topics(settings)]
    described = {topic["name"]: topic for topic in admin.describe_topics(names)}
    found = {}
    for name in names:
        partitions = described[name]["partitions"]
        if described[name]["error_code"] == TOPIC_REFUSED:
            found[name] = FoundTopic(partitions=0, missing_right="Describe")
        elif partitions:
            replicas = min(len(partition["replica_nodes"]) for partition in partitions)
            found[name] = FoundTopic(partitions=len(partitions), replicas=replicas)
    return found


def _describe_whole(admin: KafkaAdminClient, settings: Settings) -> dict[str, FoundTopic]:
    """Return the same with Kafka's settings of them."""
    found = _describe(admin, settings)
    configs = _configs(admin, [name for name, topic in found.items() if topic.partitions])
    for name, config in configs.items():
        # An answer without a single setting is how a missing right looks.
        right = None if config else "DescribeConfigs"
        found[name] = replace(found[name], config=config, missing_right=right)
    return found


def _configs(admin: KafkaAdminClient, names: list[str]) -> dict[str, dict[str, str]]:
    if not names:
        return {}
    described = admin.describe_configs(
        [ConfigResource(ConfigResourceType.TOPIC, name) for name in names], config_filter="all"
    )["topic"]
    return {
        name: {key: str(entry["value"]) for key, entry in entries.items()}
        for name, entries in described.items()
    }
