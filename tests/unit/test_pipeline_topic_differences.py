"""What is said about topics that are not as they should be."""

from collections.abc import Mapping
from dataclasses import replace

import pytest

from pipeline.cluster.topic_differences import Difference, FoundTopic, find_differences
from pipeline.cluster.topics import LEAST_MESSAGE_BYTES, all_topics, changelog_name
from pipeline.engine.sending import MAX_BATCH_BYTES
from pipeline.settings import Settings

SETTINGS = Settings()
NAMES = SETTINGS.topics
REPLICAS = 3
CHANGELOG = changelog_name(SETTINGS.worker.app_id)


def found_topics(partitions: int) -> dict[str, FoundTopic]:
    """All topics as `lrurec topics create` makes them beside interactions of so many partitions."""
    return {
        topic.name: FoundTopic(partitions=topic.partitions, replicas=REPLICAS, config=topic.config)
        for topic in all_topics(SETTINGS, partitions)
    }


def differences(found: Mapping[str, FoundTopic]) -> list[Difference]:
    """What is said about them."""
    source = found.get(NAMES.interactions)
    topics = all_topics(SETTINGS, source.partitions if source else None)
    return find_differences(topics, found, "kafka:9092", replicas=REPLICAS)


def with_partitions(found: FoundTopic, partitions: int) -> FoundTopic:
    """The same topic with another count."""
    return replace(found, partitions=partitions)


def topic_name(kind: str) -> str:
    """The name of one of the topics."""
    return CHANGELOG if kind == "changelog" else str(getattr(NAMES, kind))


def difference_of(kind: str, **config: str) -> Difference:
    """What is said about a topic with these settings, and nothing else."""
    found, name = found_topics(4), topic_name(kind)
    found[name] = replace(found[name], config={**found[name].config, **config})
    (difference,) = differences(found)
    assert difference.topic == name
    return difference


@pytest.mark.parametrize("partitions", [3, 4])
def test_without_the_interactions_nothing_is_said_of_the_others(partitions: int) -> None:
    """A name that was misspelt must not make the states look wrong."""
    found = found_topics(partitions)
    del found[NAMES.interactions]

    (difference,) = differences(found)

    assert (difference.topic, difference.got) == (NAMES.interactions, "no such topic")
    assert difference.remedy.startswith("correct topics.interactions if another is meant")


def test_interactions_that_grew_ask_for_a_new_beginning() -> None:
    """What holds the states stays; the remedy names every setting that a new beginning needs."""
    found = found_topics(3)
    found[NAMES.interactions] = with_partitions(found[NAMES.interactions], 4)

    said = differences(found)

    assert {difference.topic for difference in said} == {
        NAMES.recommendations,
        NAMES.dead_letters,
        NAMES.users,
        CHANGELOG,
    }
    for difference in said:
        assert difference.fatal
        assert difference.expected == f"4, as {NAMES.interactions} has"
        assert (
            "interactions with 3 partitions: name these by topics.interactions, or begin anew "
            in (difference.remedy)
        )
        assert (
            "another worker.app_id, worker.data_dir, topics.recommendations, "
            "topics.dead_letters, topics.users, then: lrurec topics create"
        ) in difference.remedy


@pytest.mark.parametrize("kind", ["recommendations", "dead_letters", "users", "models", "items"])
def test_one_topic_with_another_count_gets_another_name(kind: str) -> None:
    """Where the states fit the interactions, it is the topic that is odd."""
    found, name = found_topics(4), getattr(NAMES, kind)
    found[name] = with_partitions(found[name], 6)

    (difference,) = differences(found)

    assert (difference.topic, difference.got, difference.fatal) == (name, "6", True)
    assert difference.remedy == f"name another by topics.{kind}, then: lrurec topics create"


def test_no_remedy_deletes_a_topic() -> None:
    """Whatever is wrong with them: each may hold what is nowhere else."""
    found = {
        name: FoundTopic(partitions=7, config=dict.fromkeys(one.config, "0"))
        for name, one in found_topics(4).items()
    }

    said = differences(found) + differences({})

    assert len(said) > 2 * len(found)
    assert not [difference for difference in said if "--delete " in str(difference)]


@pytest.mark.parametrize("kind", ["recommendations", "dead_letters", "changelog"])
def test_a_topic_that_refuses_a_worker_s_batches_is_refused(kind: str) -> None:
    """A worker would end at its first large batch."""
    difference = difference_of(kind, **{"max.message.bytes": "1000"})

    assert (difference.fact, difference.got, difference.fatal) == (
        "max.message.bytes",
        "1000",
        True,
    )
    assert LEAST_MESSAGE_BYTES > MAX_BATCH_BYTES


def test_dead_letters_of_the_usual_size_are_noted() -> None:
    """A large letter then comes without its record."""
    assert not difference_of("dead_letters", **{"max.message.bytes": "1048588"}).fatal


@pytest.mark.parametrize(
    ("kind", "key"),
    [
        ("interactions", "retention.ms"),
        ("interactions", "retention.bytes"),
        ("changelog", "segment.ms"),
        ("changelog", "segment.bytes"),
        ("changelog", "delete.retention.ms"),
        ("changelog", "min.compaction.lag.ms"),
        ("items", "delete.retention.ms"),
    ],
)
def test_settings_that_were_altered_are_noted(kind: str, key: str) -> None:
    """With the command that puts them back; a worker can run."""
    difference = difference_of(kind, **{key: "60000"})

    assert (difference.fact, difference.got, difference.fatal) == (key, "60000", False)
    assert f"--entity-name {topic_name(kind)} --add-config '{key}=[" in difference.remedy


def test_what_keeps_more_than_asked_for_is_fine() -> None:
    """Larger messages, tombstones for longer, a longer wait for compaction; more copies."""
    found = found_topics(4)
    more = {"max.message.bytes": "99999999", "delete.retention.ms": str(2**63 - 1)}
    more["min.compaction.lag.ms"] = "99999999"
    for name, one in found.items():
        found[name] = replace(one, replicas=5, config={**one.config, **more})

    assert differences(found) == []


def test_fewer_copies_than_the_settings_say_are_noted() -> None:
    """A topic that is there keeps its copies, whatever `topics.replication_factor` says."""
    found = found_topics(4)
    found[CHANGELOG] = replace(found[CHANGELOG], replicas=1)

    (difference,) = differences(found)

    assert (difference.topic, difference.fact, difference.fatal) == (CHANGELOG, "replicas", False)
    assert (difference.expected[0], difference.got) == ("3", "1")


def test_a_setting_that_a_cluster_does_not_tell_is_left_out() -> None:
    """Kafka's relatives have fewer of them."""
    found = found_topics(4)
    for name, one in found.items():
        found[name] = replace(one, config={"cleanup.policy": one.config["cleanup.policy"]})

    assert differences(found) == []


def test_copies_that_are_not_known_are_not_called_too_few() -> None:
    """A cluster need not tell how many there are."""
    found = found_topics(4)
    found[CHANGELOG] = replace(found[CHANGELOG], replicas=0)

    assert differences(found) == []


@pytest.mark.parametrize(
    ("kind", "policy"),
    [
        ("interactions", "compact"),
        ("interactions", "compact,delete"),
        ("dead_letters", "compact"),
        ("changelog", "delete"),
        ("changelog", "compact, delete"),
        ("models", "delete"),
        ("items", "delete"),
        ("users", "compact,delete"),
    ],
)
def test_a_policy_that_loses_what_a_topic_is_for_is_refused(kind: str, policy: str) -> None:
    """Compaction would swallow clicks and letters, age would states, releases and commands."""
    difference = difference_of(kind, **{"cleanup.policy": policy})

    assert (difference.fact, difference.got, difference.fatal) == ("cleanup.policy", policy, True)


@pytest.mark.parametrize("policy", ["compact", "delete"])
def test_recommendations_may_be_kept_either_way(policy: str) -> None:
    """Another way than ours is odd, no more; another order and blanks are not even that."""
    assert not difference_of("recommendations", **{"cleanup.policy": policy}).fatal

    found = found_topics(4)
    config = {**found[NAMES.recommendations].config, "cleanup.policy": "delete, compact"}
    found[NAMES.recommendations] = replace(found[NAMES.recommendations], config=config)
    assert differences(found) == []


def test_what_keeps_a_worker_from_starting_comes_first() -> None:
    """Whichever topic it is of: the first one is what an operator is told."""
    found = found_topics(4)
    altered = {**found[NAMES.interactions].config, "retention.ms": "60000"}
    found[NAMES.interactions] = replace(found[NAMES.interactions], config=altered)
    del found[CHANGELOG]

    assert [difference.topic for difference in differences(found)] == [
        CHANGELOG,
        NAMES.interactions,
    ]
