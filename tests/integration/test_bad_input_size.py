"""A batch that becomes larger than memory: a clear end before it is unpacked, and a way past it."""

import asyncio

import aiokafka
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch
from kafka.errors import NoError
from kafka.structs import OffsetAndMetadata, TopicPartition

from pipeline.cluster.unpacked_size import MAX_BYTES
from pipeline.engine.stop import ExitCode
from pipeline.settings import Settings
from tests.bad_records import click, history_lengths, last_words
from tests.integration.test_restore import stream as stream  # a fixture
from tests.kafka import admin_client, committed_lag, send, wait_until
from tests.worker_process import running_worker


def send_bomb(settings: Settings) -> None:
    """An event with very many blanks behind it, in a few kilobytes."""
    address, topic = settings.kafka.bootstrap_servers, settings.topics.interactions

    async def run() -> None:
        async with aiokafka.AIOKafkaProducer(bootstrap_servers=address) as producer:
            batch = BatchBuilder(2 * MAX_BYTES, DefaultRecordBatch.CODEC_ZSTD)
            value = click("bomb") + b" " * MAX_BYTES
            batch.append(timestamp=None, key=b"k", value=value, headers=[])
            batch.close()
            await (await producer.send_batch(batch, topic, partition=0))

    asyncio.run(run())


def step_over(settings: Settings, offset: int) -> None:
    """As kafka-consumer-groups.sh does it, once the worker that died is missed."""
    partition = TopicPartition(settings.topics.interactions, 0)
    to = {partition: OffsetAndMetadata(offset, "", -1)}

    def is_done() -> bool:
        with admin_client(settings.kafka.bootstrap_servers) as admin:
            answer = admin.alter_group_offsets(settings.worker.app_id, to)
        return answer[partition] is NoError

    wait_until(is_done, "the group to be moved")


def test_a_batch_that_becomes_too_large_ends_the_worker_in_front_of_it(stream: Settings) -> None:
    """Not the system that has no memory left; what came before is counted and committed."""
    address, topic = stream.kafka.bootstrap_servers, stream.topics.interactions
    send(address, topic, [(0, b"k", click("before"))])
    send_bomb(stream)
    send(address, topic, [(0, b"k", click("behind"))])

    with running_worker(stream) as worker:
        assert worker.wait() == ExitCode.KAFKA
    assert committed_lag(stream) == 2
    said = last_words(worker)
    assert f"{topic} partition 0: offsets 1 to 1, " in said
    assert f"expected at most {MAX_BYTES} bytes" in said
    assert "--reset-offsets" in said

    step_over(stream, 2)
    with running_worker(stream) as worker:
        worker.wait_until_ready()
        wait_until(lambda: committed_lag(stream) == 0, "everything committed")
        assert worker.stop() == 0
    assert history_lengths(stream) == {"before": 1, "behind": 1}
