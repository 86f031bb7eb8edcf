"""What a topic should be, and how one that exists differs from that.

Knows no client of Kafka: what exists is handed in. No remedy deletes a topic: each may hold what is
nowhere else.
"""

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

from pipeline.cluster.rights import grant

MESSAGE_BYTES = "max.message.bytes"
MORE_IS_FINE = (MESSAGE_BYTES, "delete.retention.ms", "min.compaction.lag.ms")


@dataclass(frozen=True, kw_only=True)
class Topic:
    """One topic as it should be.

    Attributes:
        name: Its name in Kafka.
        what: What a record of it is.
        setting: The setting that its name comes from.
        partitions: How many it gets.
        config: Kafka's settings of the topic.
        least_message_bytes: The `max.message.bytes` without which a worker cannot write to it;
            None: no worker does.
        keyed_by_user: Whether its partitions must be as many as the interactions have.
    """

    name: str
    what: str
    setting: str
    partitions: int
    config: Mapping[str, str] = field(default_factory=dict)
    least_message_bytes: int | None = None
    keyed_by_user: bool = True


@dataclass(frozen=True, kw_only=True)
class FoundTopic:
    """One topic as it is.

    Attributes:
        partitions: How many it has; 0 where that may not be known.
        replicas: Copies of the partition that has the fewest; 0 where that is not known.
        config: Kafka's settings of it.
        missing_right: The right without which the rest is not known; None: it is there.
    """

    partitions: int
    replicas: int = 0
    config: Mapping[str, str] = field(default_factory=dict)
    missing_right: str | None = None


@dataclass(frozen=True, kw_only=True)
class Difference:
    """One fact about a topic that is not as expected; `fatal` ones keep a worker from starting."""

    topic: str
    fact: str
    expected: str
    got: str
    fatal: bool
    remedy: str

    def __str__(self) -> str:
        return (
            f"topic {self.topic}: {self.fact}: expected {self.expected}, got {self.got}; "
            f"{self.remedy}"
        )


def find_differences(
    topics: Sequence[Topic], found: Mapping[str, FoundTopic], servers: str, *, replicas: int = 1
) -> list[Difference]:
    """Compare every topic with what was found of it, the gravest differences first.

    Args:
        topics: All of them: the interactions first, whose partition count rules, the changelog
            last.
        found: Those that exist, by name.
        servers: The brokers, for the commands that remedies name.
        replicas: How many copies each partition should have at least.
    """
    differences: list[Difference] = []
    for topic in topics:
        if topic.name not in found:
            differences.append(_missing(topic, is_source=topic is topics[0]))
            continue
        got = found[topic.name]
        if got.missing_right is not None:
            differences.append(_right_difference(topic, got.missing_right))
        if got.partitions:
            differences += _count_differences(topic, topics, found)
        if 0 < got.replicas < replicas:
            differences.append(_replica_difference(topic, replicas, got.replicas, servers))
        if got.config:
            differences += _config_differences(topic, got.config, servers)
    return sorted(differences, key=lambda difference: not difference.fatal)


def _missing(topic: Topic, *, is_source: bool) -> Difference:
    correct = f"correct {topic.setting} if another is meant, else " if is_source else ""
    return Difference(
        topic=topic.name,
        fact="existence",
        expected=f"{topic.partitions} partitions ({topic.what})",
        got="no such topic",
        fatal=True,
        remedy=f"{correct}make it: lrurec topics create",
    )


def _right_difference(topic: Topic, right: str) -> Difference:
    return Difference(
        topic=topic.name,
        fact="rights",
        expected=right,
        got="none",
        fatal=True,
        remedy=grant(right),
    )


def _count_differences(
    topic: Topic, topics: Sequence[Topic], found: Mapping[str, FoundTopic]
) -> list[Difference]:
    """Compare the partition count; without the interactions nobody knows what it should be."""
    source, changelog = topics[0], topics[-1]
    got = found[topic.name].partitions
    if got == topic.partitions or (topic.keyed_by_user and not _count(source, found)):
        return []
    states = _count(changelog, found)
    if topic.keyed_by_user and states and states != changelog.partitions:
        anew = [other.setting for other in topics[1:] if other.keyed_by_user and other != changelog]
        remedy = (
            f"the states are of interactions with {states} partitions: name these by "
            f"{source.setting}, or begin anew with another {changelog.setting}, worker.data_dir, "
            f"{', '.join(anew)}, then: lrurec topics create"
        )
    else:
        remedy = f"name another by {topic.setting}, then: lrurec topics create"
    reason = f", as {source.name} has" if topic.keyed_by_user else ""
    return [
        Difference(
            topic=topic.name,
            fact="partitions",
            expected=f"{topic.partitions}{reason}",
            got=str(got),
            fatal=True,
            remedy=remedy,
        )
    ]


def _replica_difference(topic: Topic, expected: int, got: int, servers: str) -> Difference:
    return Difference(
        topic=topic.name,
        fact="replicas",
        expected=f"{expected}, as topics.replication_factor says",
        got=str(got),
        fatal=False,
        remedy=(
            f"kafka-reassign-partitions.sh --bootstrap-server {servers} --execute "
            "--reassignment-json-file FILE, with a plan of that many"
        ),
    )


def _count(topic: Topic, found: Mapping[str, FoundTopic]) -> int:
    """Return how many partitions it has; 0 where it does not exist or may not be known."""
    return found[topic.name].partitions if topic.name in found else 0


def _config_differences(topic: Topic, got: Mapping[str, str], servers: str) -> list[Difference]:
    """Compare the settings; what a cluster does not tell of is left out."""
    least_bytes = topic.least_message_bytes
    wanted = {} if least_bytes is None else {MESSAGE_BYTES: str(least_bytes)}
    differences = []
    for key, value in {**wanted, **topic.config}.items():
        if key not in got or _is_fit(key, value, got[key]):
            continue
        is_too_small = key == MESSAGE_BYTES and int(got[key]) < (least_bytes or 0)
        is_lossy = key == "cleanup.policy" and _is_lossy(value, got[key])
        differences.append(
            Difference(
                topic=topic.name,
                fact=key,
                expected=f"at least {value}" if key in MORE_IS_FINE else value,
                got=got[key],
                fatal=is_too_small or is_lossy,
                remedy=(
                    f"kafka-configs.sh --bootstrap-server {servers} "
                    f"--alter --entity-type topics --entity-name {topic.name} "
                    f"--add-config '{key}=[{value}]'"
                ),
            )
        )
    return differences


def _is_fit(key: str, expected: str, got: str) -> bool:
    if key in MORE_IS_FINE:
        return int(got) >= int(expected)
    return _parts(got) == _parts(expected)


def _is_lossy(expected: str, got: str) -> bool:
    """Whether a cleanup policy loses what the topic is for.

    Compaction would swallow clicks and dead letters, deletion by age states and releases.
    Recommendations may go either way.
    """
    lossy = {"delete": "compact", "compact": "delete"}.get(expected)
    return lossy is not None and lossy in _parts(got)


def _parts(value: str) -> set[str]:
    return set(value.replace(" ", "").split(","))
