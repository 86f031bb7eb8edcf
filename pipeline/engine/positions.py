"""Where reading goes on after an assignment, and the end of a process that would step over a hole.

aiokafka begins anew at a log's start where a position is not there any more, and nobody would know
what was left out.
"""

from collections.abc import Mapping, Sequence

from aiokafka import AIOKafkaConsumer
from aiokafka.structs import TopicPartition

from pipeline.engine.stop import ExitCode, end_process

Positions = dict[TopicPartition, int]


async def find_positions(
    consumer: AIOKafkaConsumer, tps: Sequence[TopicPartition], changelog: str
) -> tuple[Positions, Positions, dict[TopicPartition, bytes]]:
    """Find where the source's partitions are to be read from.

    Whoever calls this commits the positions of new partitions before anything of them is read. So
    one that was read, as its changelog tells, has a commit, unless Kafka forgot it: it does, a week
    after a group's last member left (offsets.retention.minutes). Whether what was deleted since had
    been read nobody can tell then, and the process ends.

    One request for all (aiokafka's own `seek_to_committed` sends one per partition).

    Args:
        consumer: Of the group; in the loop this runs in.
        tps: Partitions of the source.
        changelog: Name of the changelog, which has the same partitions.

    Returns:
        Committed offsets, first offsets of partitions that have no commit, and what commits note of
        their changelog (`pipeline.engine.marks`).
    """
    found = await consumer._coordinator.fetch_committed_offsets(tps)
    committed = {tp: found[tp].offset for tp in tps if tp in found and found[tp].offset >= 0}
    notes = {tp: (found[tp].metadata or "").encode() for tp in committed}
    beginnings = await require_readable(consumer, committed, tps)
    new = {tp: beginnings[tp] for tp in tps if tp not in committed}
    cut = [tp for tp, beginning in new.items() if beginning > 0]
    logs = {tp: TopicPartition(changelog, tp.partition) for tp in cut}
    ends = await consumer.end_offsets(list(logs.values())) if cut else {}
    for tp in cut:
        if ends[logs[tp]] > 0:
            end_process(
                ExitCode.HOLE,
                "%s partition %d: it was read before, but Kafka has forgotten how far (it forgets "
                "a group without members after offsets.retention.minutes), and the topic now "
                "starts at %d: records may have been deleted before they were read. To accept "
                "that, %s",
                tp.topic,
                tp.partition,
                new[tp],
                go_on_from_the_start(consumer, tp),
            )
    return committed, new, notes


async def require_readable(
    consumer: AIOKafkaConsumer,
    positions: Mapping[TopicPartition, int],
    tps: Sequence[TopicPartition],
) -> Positions:
    """End the process where a position is not in its partition's log any more.

    Args:
        consumer: In the loop this runs in.
        positions: Next offset to read, of some of the partitions.
        tps: The partitions.

    Returns:
        Each partition's first offset.
    """
    beginnings: Positions = await consumer.beginning_offsets(tps)
    ends = await consumer.end_offsets(tps)
    for tp, position in positions.items():
        if position < beginnings[tp]:
            end_process(
                ExitCode.HOLE,
                "%s partition %d: offset %d is the next to read, but the topic now starts at %d: "
                "the records between were deleted before they were read. Restore them, or, to "
                "accept the loss, %s",
                tp.topic,
                tp.partition,
                position,
                beginnings[tp],
                go_on_from_the_start(consumer, tp),
            )
        if position > ends[tp]:
            end_process(
                ExitCode.HOLE,
                "%s partition %d: offset %d is the next to read, but the topic ends at %d: it was "
                "made anew or cut, and the states reflect records that are gone. Restore the "
                "topic, or begin anew with another --worker.app-id and --worker.data-dir.",
                tp.topic,
                tp.partition,
                position,
                ends[tp],
            )
    return beginnings


def go_on_from_the_start(consumer: AIOKafkaConsumer, tp: TopicPartition) -> str:
    """Say how the group is set to where a partition starts, which Kafka does without members."""
    return (
        f"stop every worker, wait {consumer._session_timeout_ms / 1000:g} s until Kafka has missed "
        f"them, and run kafka-consumer-groups.sh --bootstrap-server HOST:PORT --group "
        f"{consumer._group_id} --topic {tp.topic}:{tp.partition} --reset-offsets --to-earliest "
        f"--execute; then start again."
    )
