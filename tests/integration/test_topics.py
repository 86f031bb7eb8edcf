"""Topics on a real Kafka: made, checked, refused."""

from dataclasses import replace
from pathlib import Path

import pytest

from pipeline.__main__ import main
from pipeline.cluster.topics import (
    all_topics,
    changelog_name,
    check_topics,
    create_topics,
    require_topics,
)
from pipeline.errors import BrokerUnavailable, TopicMismatch
from pipeline.settings import Settings, settings_flags
from tests.kafka import admin_client, create_topic


def partition_counts(settings: Settings) -> dict[str, int]:
    """Partitions of each topic of these settings, as Kafka's metadata has them."""
    names = [topic.name for topic in all_topics(settings)]
    with admin_client(settings.kafka.bootstrap_servers) as admin:
        return {
            topic["name"]: len(topic["partitions"])
            for topic in admin.describe_topics(names)
            if topic["partitions"]
        }


def test_created_topics_are_as_they_should_be(settings: Settings) -> None:
    """After creation nothing differs, and the topics keyed by user have equally many partitions."""
    created = create_topics(settings)

    names, counts = settings.topics, partition_counts(settings)
    assert set(created) == set(counts) == {topic.name for topic in all_topics(settings)}
    assert check_topics(settings) == []
    assert require_topics(settings) == 4
    changelog = changelog_name(settings.worker.app_id)
    for name in (names.interactions, names.recommendations, names.users, changelog):
        assert counts[name] == 4
    assert counts[names.models] == counts[names.items] == 1


def test_creating_again_makes_nothing(settings: Settings) -> None:
    """A second creation finds everything and alters nothing."""
    create_topics(settings)

    assert create_topics(settings) == []
    assert check_topics(settings) == []


def test_missing_topics_are_named_with_the_command_that_makes_them(settings: Settings) -> None:
    """On an empty cluster each topic is a fatal difference, and a worker refuses to start."""
    differences = check_topics(settings)

    assert [d.topic for d in differences] == [topic.name for topic in all_topics(settings)]
    assert all(d.fatal and "lrurec topics create" in d.remedy for d in differences)
    with pytest.raises(TopicMismatch, match=rf"topic {settings.topics.interactions}: .*6 more"):
        require_topics(settings)


def test_the_count_of_an_existing_interactions_topic_rules(settings: Settings) -> None:
    """The user's own topic is left alone, and everything keyed by user takes its count."""
    create_topic(settings.kafka.bootstrap_servers, settings.topics.interactions, partitions=3)

    created = create_topics(settings)

    counts = partition_counts(settings)
    assert settings.topics.interactions not in created
    assert counts[settings.topics.interactions] == 3
    assert counts[changelog_name(settings.worker.app_id)] == 3
    assert counts[settings.topics.models] == 1
    assert require_topics(settings) == 3


@pytest.mark.parametrize(
    ("kind", "remedy"),
    [
        ("recommendations", "name another by topics.recommendations"),
        ("changelog", "the states are of interactions with 6 partitions: .* begin anew "),
    ],
)
def test_another_partition_count_is_refused_with_both_numbers(
    settings: Settings, kind: str, remedy: str
) -> None:
    """A topic that is not co-partitioned stops creation and start, in one line."""
    name = {
        "recommendations": settings.topics.recommendations,
        "changelog": changelog_name(settings.worker.app_id),
    }[kind]
    create_topic(
        settings.kafka.bootstrap_servers,
        name,
        partitions=6,
        config={"cleanup.policy": "compact"},
    )

    message = f"topic {name}: partitions: expected 4, as .* has, got 6; {remedy}"
    for check in (create_topics, require_topics):
        with pytest.raises(TopicMismatch, match=message) as caught:
            check(settings)
        assert "\n" not in str(caught.value)


@pytest.mark.parametrize("policy", ["delete", "compact,delete"])
def test_a_changelog_that_forgets_rows_is_refused(settings: Settings, policy: str) -> None:
    """States deleted by age are lost states: the cleanup policy is checked at the start."""
    create_topic(
        settings.kafka.bootstrap_servers,
        changelog_name(settings.worker.app_id),
        partitions=4,
        config={"cleanup.policy": policy},
    )

    with pytest.raises(TopicMismatch, match=r"cleanup\.policy: expected compact, got .*delete"):
        create_topics(settings)


def test_compacted_interactions_are_refused(settings: Settings) -> None:
    """Compaction keeps one click per user: no topic to learn from."""
    create_topic(
        settings.kafka.bootstrap_servers,
        settings.topics.interactions,
        config={"cleanup.policy": "compact"},
    )

    with pytest.raises(TopicMismatch, match=r"cleanup\.policy: expected delete, got compact"):
        create_topics(settings)


def test_a_short_retention_is_told_but_does_not_stop_a_worker(settings: Settings) -> None:
    """How long clicks are kept is the operator's choice; it is reported with the remedy."""
    create_topic(
        settings.kafka.bootstrap_servers,
        settings.topics.interactions,
        partitions=4,
        config={"retention.ms": "604800000"},
    )
    create_topics(settings)

    (difference,) = check_topics(settings)

    assert (difference.fact, difference.expected, difference.got) == (
        "retention.ms",
        "-1",
        "604800000",
    )
    assert not difference.fatal
    assert "kafka-configs.sh" in difference.remedy
    assert require_topics(settings) == 4


def test_what_ends_a_worker_is_found_by_the_check(settings: Settings) -> None:
    """An output topic that takes no batch of a worker; copies are counted, too."""
    create_topic(
        settings.kafka.bootstrap_servers,
        settings.topics.recommendations,
        partitions=4,
        config={"cleanup.policy": "compact", "max.message.bytes": "1000"},
    )
    with pytest.raises(TopicMismatch, match=r"max\.message\.bytes: expected at least 1000000"):
        create_topics(settings)

    copied = replace(settings, topics=replace(settings.topics, replication_factor=3))

    replicas = [one for one in check_topics(copied) if one.fact == "replicas"]
    assert len(replicas) == len(all_topics(settings))
    assert {(one.got, one.fatal) for one in replicas} == {("1", False)}


def test_too_many_replicas_are_refused_in_one_line(settings: Settings) -> None:
    """What Kafka says about an impossible topic reaches the operator."""
    impossible = replace(settings, topics=replace(settings.topics, replication_factor=31))

    wanted = r"(?i)cannot be created at .*replication factor"
    with pytest.raises(TopicMismatch, match=wanted) as caught:
        create_topics(impossible)

    assert "\n" not in str(caught.value)


def test_no_kafka_is_told_in_one_line(settings: Settings) -> None:
    """Nobody at the address: an error after the deadline that says what to do."""
    kafka = replace(settings.kafka, bootstrap_servers="127.0.0.1:9", connect_timeout_s=0.2)

    with pytest.raises(BrokerUnavailable, match=r"127\.0\.0\.1:9.*lrurec broker start"):
        check_topics(replace(settings, kafka=kafka))


@pytest.mark.parametrize("command", ["verify", "train", "replay"])
def test_a_misspelt_topic_is_to_be_corrected_before_it_is_to_be_made(
    settings: Settings, tmp_path: Path, capsys: pytest.CaptureFixture[str], command: str
) -> None:
    """Every command says so: what `lrurec topics create` makes is the misspelt one."""
    create_topics(settings)
    clicks = tmp_path / "clicks.csv"
    clicks.write_text("user,item,timestamp\nu,i,1\n")
    file = [str(clicks)] if command == "replay" else []
    misspelt = replace(settings, topics=replace(settings.topics, interactions="clickstraem"))

    assert main([command, *file, *settings_flags(misspelt)]) == 1

    line = capsys.readouterr().err.splitlines()[-1]
    assert line.startswith(f"lrurec {command}: topic clickstraem: expected at ")
    assert "correct the name (topics.*, worker.app_id) if another is meant, else make it" in line
