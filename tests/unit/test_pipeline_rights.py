"""Refusals for want of a right, in words."""

import aiokafka.errors
import kafka.errors
import pytest

from pipeline.cluster.rights import in_words, missing_right, remedy

KINDS = ("Topic", "Group", "TransactionalId", "Cluster")
REFUSALS = [
    error
    for library in (aiokafka.errors, kafka.errors)
    for name, error in vars(library).items()
    if name.removesuffix("Error") in {f"{kind}AuthorizationFailed" for kind in KINDS}
]


def test_both_libraries_know_every_refusal() -> None:
    """A name that changed would silently lose its words."""
    assert len(REFUSALS) == 2 * len(KINDS)


@pytest.mark.parametrize("error", REFUSALS)
def test_a_refusal_names_the_right(error: type[Exception]) -> None:
    """And where all rights are listed."""
    line = in_words(error("what"))

    assert line.startswith(f"{error.__name__}: what; this program needs the right ")
    assert line.endswith("(docs/topics.md, Who needs which rights)")


def test_a_refusal_that_was_wrapped_is_known_by_its_name() -> None:
    """As kafka-python's producer does."""
    error = kafka.errors.KafkaError("InitProducerIdResponse: ClusterAuthorizationFailedError")

    assert "Write on the topic" in (missing_right(error) or "")


def test_other_errors_miss_no_right() -> None:
    """They are their name and what they say."""
    error = kafka.errors.KafkaConnectionError("closed")

    assert missing_right(error) is None
    assert in_words(error) == "KafkaConnectionError: closed"


def test_a_refusal_of_a_group_says_what_to_do() -> None:
    """Which setting is wrong, or which name is taken."""
    errors = aiokafka.errors

    assert "kafka.session_timeout_s" in remedy(errors.InvalidSessionTimeoutError())
    assert "worker.app_id" in remedy(errors.InconsistentGroupProtocolError())
    assert "the right Read (worker)" in remedy(errors.GroupAuthorizationFailedError("group"))
    assert remedy(errors.UnknownError()) == "see to the broker"
