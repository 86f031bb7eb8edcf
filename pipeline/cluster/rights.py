"""Errors of Kafka in words: what a refusal means to an operator, most often for want of a right.

Both client libraries name their errors alike; aiokafka leaves the ending off some.
"""

TOPIC_REFUSED = 29  # TOPIC_AUTHORIZATION_FAILED: the topic is there or not, this user may not know
WHERE = "docs/topics.md, Who needs which rights"

_NEEDED = {
    "TopicAuthorizationFailed": "Read (to read) or Write (to send) on the topic",
    "GroupAuthorizationFailed": "Read (worker) or Describe (verify) on the group worker.app_id",
    "TransactionalIdAuthorizationFailed": "Write on the transactional ids worker.app_id-N",
    # A producer is refused so, before it sends, where it may write to no topic at all.
    "ClusterAuthorizationFailed": "Write on the topic (before Kafka 2.8, IdempotentWrite on the "
    "cluster)",
}
_REMEDIES = {
    "InvalidSessionTimeout": "set kafka.session_timeout_s to what the brokers allow, from "
    "group.min.session.timeout.ms to group.max.session.timeout.ms",
    "InconsistentGroupProtocol": "another program's members are in the group worker.app_id: give "
    "one of the two another name",
    "BatchTooLarge": "to step over it, stop all workers and set the group worker.app_id behind it, "
    "kafka-consumer-groups.sh --reset-offsets --to-offset (docs/operating.md, What happens when)",
}


def in_words(error: Exception) -> str:
    """Return an error of a client library as its name, what it says, and the right it misses."""
    name, right = type(error).__name__, missing_right(error)
    said = " ".join(" ".join(map(str, error.args)).removeprefix(f"{name}: ").split()).rstrip(": ")
    return name + (f": {said}" if said else "") + (f"; {right}" if right else "")


def missing_right(error: BaseException) -> str | None:
    """Return which right an error of Kafka says is missing, and where rights are listed.

    None: it says something else.
    """
    said = f"{type(error).__name__}: {error}"  # some wrap the error and have only its name left
    right = next((right for name, right in _NEEDED.items() if name in said), None)
    return right and f"this program needs the right {right} ({WHERE})"


def remedy(error: BaseException) -> str:
    """Return what to do about a refusal of Kafka's."""
    said = f"{type(error).__name__}: {error}"
    known = next((remedy for name, remedy in _REMEDIES.items() if name in said), None)
    return missing_right(error) or known or "see to the broker"


def grant(right: str) -> str:
    """Return what to do where a right on a topic is missing."""
    return f"give this program the right {right} on it ({WHERE})"
