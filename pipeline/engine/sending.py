"""Records on their way out, in whole batches: rows, outputs and dead letters."""

import asyncio
from collections.abc import Awaitable, Iterable
from typing import Any

from aiokafka import AIOKafkaProducer
from aiokafka.errors import MessageSizeTooLargeError, RecordListTooLargeError
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.default_records import DefaultRecordBatch

from pipeline.engine.clients import start_client, stop_quietly
from pipeline.engine.options import EngineOptions
from pipeline.engine.processor import DeadLetter

MAX_BATCH_BYTES = 900_000  # before compression; a broker takes 1 MiB unless told otherwise
TOO_LARGE = (MessageSizeTooLargeError, RecordListTooLargeError)


async def send_records(
    producer: AIOKafkaProducer,
    topic: str,
    partition: int,
    records: Iterable[tuple[bytes, bytes | None]],
) -> list[tuple[Awaitable[Any], int]]:
    """Send records to one partition in whole batches; much cheaper than a future per record.

    Returns:
        Per batch a future, whose result carries the offset of the batch's first record, and its
        number of records.
    """
    batches = [producer.create_batch()]
    for key, value in records:
        if batches[-1].append(timestamp=None, key=key, value=value) is None:
            batches.append(producer.create_batch())
            batches[-1].append(timestamp=None, key=key, value=value)  # the first one always fits
    return await _send_batches(producer, topic, partition, batches)


async def send_dead_letters(
    producer: AIOKafkaProducer,
    options: EngineOptions,
    partition: int,
    letters: Iterable[DeadLetter],
) -> list[Awaitable[Any]]:
    """Send dead letters to one partition; the futures tell when they are safe.

    Not by `producer.send`, which refuses a record that has neither key nor value: a source may hold
    one.
    """
    batches, large = [producer.create_batch()], []
    for letter in letters:
        if letter.size() > MAX_BATCH_BYTES:
            large.append(letter)
        elif not _append(batches[-1], letter):
            batches.append(producer.create_batch())
            _append(batches[-1], letter)
    sent = await _send_batches(producer, options.dead_letters, partition, batches)
    confirmations: list[Awaitable[Any]] = [future for future, _ in sent]
    if large:
        confirmations.append(asyncio.ensure_future(_send_large(options, partition, large)))
    return confirmations


def _append(batch: BatchBuilder, letter: DeadLetter) -> bool:
    headers = [*letter.headers, *letter.about]
    added = batch.append(timestamp=None, key=letter.key, value=letter.value, headers=headers)
    return added is not None


async def _send_large(
    options: EngineOptions, partition: int, letters: Iterable[DeadLetter]
) -> None:
    """Send letters that a broker may refuse, each by itself; those it refuses without their record.

    By a producer of their own: one that numbers its batches sends nothing behind a refused one. In
    zstd: whatever made the record fit its source, this comes near to it.
    """
    producer = AIOKafkaProducer(**options.kafka, acks="all")
    await start_client(producer)
    try:
        for letter in letters:
            try:
                await _send_alone(producer, options.dead_letters, partition, letter)
            except TOO_LARGE:
                rest = letter.without_record()
                await _send_alone(producer, options.dead_letters, partition, rest)
    finally:
        await stop_quietly(producer)


async def _send_alone(
    producer: AIOKafkaProducer, topic: str, partition: int, letter: DeadLetter
) -> None:
    batch = BatchBuilder(MAX_BATCH_BYTES, DefaultRecordBatch.CODEC_ZSTD)
    _append(batch, letter)
    ((future, _),) = await _send_batches(producer, topic, partition, [batch])
    await future


async def _send_batches(
    producer: AIOKafkaProducer, topic: str, partition: int, batches: Iterable[BatchBuilder]
) -> list[tuple[Awaitable[Any], int]]:
    sent = []
    for batch in batches:
        batch.close()  # nothing may be added to it under way
        if batch.record_count():
            future = await producer.send_batch(batch, topic, partition=partition)
            sent.append((future, batch.record_count()))
    return sent
