"""What is said about topics that are not as they should be."""

from collections.abc import Mapping

import pytest

from pipeline.cluster.topic_differences import Difference, FoundTopic, find_differences
from pipeline.cluster.topics import all_topics, changelog_name
from pipeline.settings import Settings

SETTINGS = Settings()
NAMES = SETTINGS.topics
CHANGELOG = changelog_name(SETTINGS.worker.app_id)


def found_topics(partitions: int) -> dict[str, FoundTopic]:
    """All topics as `lrurec topics create` makes them beside interactions of so many partitions."""
    return {
        topic.name: FoundTopic(partitions=topic.partitions, config=topic.config)
        for topic in all_topics(SETTINGS, partitions)
    }


def differences(found: Mapping[str, FoundTopic]) -> list[Difference]:
    """What is said about them."""
    source = found.get(NAMES.interactions)
    topics = all_topics(SETTINGS, source.partitions if source else None)
    return find_differences(topics, found, "kafka:9092")


def with_partitions(found: FoundTopic, partitions: int) -> FoundTopic:
    """The same topic with another count."""
    return FoundTopic(partitions=partitions, config=found.config)


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
