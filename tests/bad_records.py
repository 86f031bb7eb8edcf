"""Records that no well-behaved producer sends, and what should become of them."""

import asyncio
import json
import socket
import struct
import subprocess
import sys
from collections.abc import Iterable, Sequence
from dataclasses import dataclass, field
from typing import Any

import aiokafka
import msgspec
from aiokafka.producer.message_accumulator import BatchBuilder
from aiokafka.record.util import calc_crc32c

from pipeline.cluster.records import Record, read_partitions
from pipeline.errors import DeadReason
from pipeline.settings import Settings, settings_flags
from pipeline.worker.wire import Recommendation
from tests.worker_process import ROOT, WorkerProcess

NOW_MS = 1_700_000_000_000
FAR_FUTURE_MS = 4_000_000_000_000  # 2096: a lawful time, but not for a record of today
MAX_ID_BYTES = 256
_BATCH_BYTES = 2_000_000
_CRC_AT, _CHECKED_FROM = 17, 21  # of a record batch


@dataclass(frozen=True, kw_only=True)
class Raw:
    """A record to send as it is; a header's name may be any bytes."""

    partition: int = 0
    key: bytes | None = None
    value: bytes | None = None
    headers: Sequence[tuple[str | bytes, bytes | None]] = ()


@dataclass(frozen=True, kw_only=True)
class Bad:
    """A record that is no event, and why."""

    reason: DeadReason
    value: bytes | None
    key: bytes | None = b"user"
    headers: Sequence[tuple[str | bytes, bytes | None]] = field(
        default=(("trace", b"\x00\xff"), ("empty", None), ("lrurec-reason", b"forged"))
    )


def click(user: Any = "u", item: Any = "i", timestamp_ms: Any = NOW_MS, **more: Any) -> bytes:
    """An event's JSON; msgspec would refuse a lone surrogate, so it is the standard library's."""
    event = {"user_id": user, "item_id": item, "timestamp_ms": timestamp_ms, "event_type": "view"}
    return json.dumps({**event, **more}).encode()


def without(name: str) -> bytes:
    event = json.loads(click())
    del event[name]
    return json.dumps(event).encode()


BAD = {
    "no JSON": Bad(reason=DeadReason.NOT_JSON, value=b"{nonsense"),
    "nothing": Bad(reason=DeadReason.NOT_JSON, value=b""),
    "half an object": Bad(reason=DeadReason.NOT_JSON, value=click()[:-5]),
    "UTF-16": Bad(reason=DeadReason.NOT_JSON, value=click().decode().encode("utf-16")),
    "no UTF-8": Bad(reason=DeadReason.NOT_JSON, value=b'{"user_id":"\xff\xfe"}'),
    "NaN": Bad(reason=DeadReason.NOT_JSON, value=click(timestamp_ms=float("nan"))),
    "Infinity as a user": Bad(reason=DeadReason.NOT_JSON, value=click(user=float("inf"))),
    "100,000 brackets": Bad(reason=DeadReason.NOT_JSON, value=b"[" * 100_000),
    "JSON's null": Bad(reason=DeadReason.NOT_OBJECT, value=b"null"),
    "a list": Bad(reason=DeadReason.NOT_OBJECT, value=b"[]"),
    "a number": Bad(reason=DeadReason.NOT_OBJECT, value=b"17"),
    "no user": Bad(reason=DeadReason.MISSING_USER, value=without("user_id")),
    "a null user": Bad(reason=DeadReason.MISSING_USER, value=click(user=None)),
    "an empty user": Bad(reason=DeadReason.BAD_USER, value=click(user="")),
    "a user that is a list": Bad(reason=DeadReason.BAD_USER, value=click(user=["u"])),
    "a lone surrogate as user": Bad(reason=DeadReason.BAD_USER, value=click(user="\ud800")),
    "no item": Bad(reason=DeadReason.MISSING_ITEM, value=without("item_id")),
    "a null item": Bad(reason=DeadReason.MISSING_ITEM, value=click(item=None)),
    "an empty item": Bad(reason=DeadReason.BAD_ITEM, value=click(item="")),
    "an item that is true": Bad(reason=DeadReason.BAD_ITEM, value=click(item=True)),
    "half a pair as item": Bad(reason=DeadReason.BAD_ITEM, value=click(item="x\udfff")),
    "a long user": Bad(reason=DeadReason.ID_TOO_LONG, value=click(user="x" * 257)),
    "a long item": Bad(reason=DeadReason.ID_TOO_LONG, value=click(item="é" * 129)),
    "a long event id": Bad(reason=DeadReason.ID_TOO_LONG, value=click(event_id="x" * 257)),
    "a negative time": Bad(reason=DeadReason.BAD_TIMESTAMP, value=click(timestamp_ms=-1)),
    "a time of 2200": Bad(reason=DeadReason.BAD_TIMESTAMP, value=click(timestamp_ms=7e12)),
    "a huge time": Bad(reason=DeadReason.BAD_TIMESTAMP, value=click(timestamp_ms=10**30)),
    "a time in words": Bad(reason=DeadReason.BAD_TIMESTAMP, value=click(timestamp_ms="yesterday")),
    "a time to come": Bad(
        reason=DeadReason.FUTURE_TIMESTAMP, value=click(timestamp_ms=FAR_FUTURE_MS)
    ),
    "an event id in a list": Bad(reason=DeadReason.BAD_FIELD, value=click(event_id=[1])),
    "an event type in an object": Bad(reason=DeadReason.BAD_FIELD, value=click(event_type={})),
    "a null value": Bad(reason=DeadReason.NULL_VALUE, value=None),
    "neither key nor value": Bad(reason=DeadReason.NULL_VALUE, value=None, key=None, headers=()),
    "a key that is no text": Bad(reason=DeadReason.NOT_JSON, value=b"x", key=b"\xff\x00\xfe"),
    "a header name that is no text": Bad(
        reason=DeadReason.NOT_JSON, value=b"x", headers=(("first", b"1"), (b"\xff\xfe", b"2"))
    ),
    "a megabyte": Bad(
        reason=DeadReason.MISSING_ITEM,
        value=b'{"user_id":"u","event_type":"view","more":"' + b"x" * 1_047_000 + b'"}',
    ),
}

_SPECIAL = 'quote" and \\ and \x00\x1f\x7f \U0001f600'
ODD_USERS = [
    _SPECIAL + "~" * (MAX_ID_BYTES - len(_SPECIAL.encode())),
    "\u202e\u2028\u00e9e\u0301" + "x" * 100,
    "x" * MAX_ID_BYTES,
    "\U0001f600" * (MAX_ID_BYTES // 4),
    "  ",
    "null",
    '{"user_id":"nested"}',
    "\ufeff",
]
ODD_ITEMS = [
    'quote"',
    "back\\slash\\",
    "\x00\x01\x1f",
    "\u2028\u2029",
    "\U0001f600" * 64,
    "</script>",
    "e\u0301",
    "\u00e9",
    "'; drop table items; --",
    "%s %d {0}",
]


def send_raw(
    address: str, topic: str, records: Iterable[Raw], *, compression: str | None = None
) -> list[int]:
    """Send records one by one, each in a batch of its own; their offsets."""

    async def run() -> list[int]:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=address,
            max_batch_size=_BATCH_BYTES,
            compression_type=compression,
        )
        await producer.start()
        try:
            offsets = []
            for record in records:
                batch = producer.create_batch()
                if any(isinstance(name, bytes) for name, _ in record.headers):
                    batch = _AnyNames(_BATCH_BYTES, 0)
                headers = list(record.headers)
                batch.append(timestamp=None, key=record.key, value=record.value, headers=headers)
                batch.close()
                future = await producer.send_batch(batch, topic, partition=record.partition)
                offsets.append((await future).offset)
            return offsets
        finally:
            await producer.stop()

    return asyncio.run(run())


class _AnyNames(BatchBuilder):  # type: ignore[misc]  # untyped
    """A batch with header names that are no UTF-8, as some clients send them."""

    def append(self, *, timestamp: Any, key: Any, value: Any, headers: Any = ()) -> Any:
        self.names = [name for name, _ in headers if isinstance(name, bytes)]
        return super().append(
            timestamp=timestamp,
            key=key,
            value=value,
            headers=[
                ("Q" * len(name) if isinstance(name, bytes) else name, content)
                for name, content in headers
            ],
        )

    def _build(self) -> bytearray:
        built = bytearray(super()._build())
        for name in self.names:
            at = built.index(b"Q" * len(name))
            built[at : at + len(name)] = name
        struct.pack_into(">I", built, _CRC_AT, calc_crc32c(bytes(built[_CHECKED_FROM:])))
        return built


def free_port() -> int:
    with socket.create_server(("127.0.0.1", 0)) as server:
        port: int = server.getsockname()[1]
        return port


def recommendations(settings: Settings) -> dict[bytes, list[Recommendation]]:
    """What every user was told, oldest first."""
    found: dict[bytes, list[Recommendation]] = {}
    for record in read_partitions(settings.kafka, settings.topics.recommendations):
        assert record.key is not None
        made = msgspec.json.decode(record.value or b"", type=Recommendation)
        assert made.user_id.encode() == record.key
        assert made.event.partition == record.partition
        found.setdefault(record.key, []).append(made)
    return found


def newest(settings: Settings) -> dict[bytes, Recommendation]:
    """Each user's recommendation that reflects the highest offset."""
    return {
        user: max(made, key=lambda one: one.event.offset)
        for user, made in recommendations(settings).items()
    }


def history_lengths(settings: Settings) -> dict[str, int]:
    """How many events of each user the newest recommendation reflects."""
    return {user.decode(): made.history_length for user, made in newest(settings).items()}


def dead_letters(settings: Settings) -> dict[tuple[int, int], list[Record]]:
    """The dead letters of each (partition, offset) of the interactions."""
    found: dict[tuple[int, int], list[Record]] = {}
    for record in read_partitions(settings.kafka, settings.topics.dead_letters):
        headers = dict(record.headers)
        assert headers["lrurec-topic"].decode() == settings.topics.interactions
        place = int(headers["lrurec-partition"]), int(headers["lrurec-offset"])
        found.setdefault(place, []).append(record)
    return found


def last_words(worker: WorkerProcess) -> str:
    """The one line in which a worker said why it ended itself; a bug has a traceback behind it."""
    lines = worker.log().splitlines()
    (line,) = [line for line in lines if " CRITICAL " in line]
    assert lines[-1] == line
    return line


def run_worker(settings: Settings, *flags: str) -> tuple[int, list[str]]:
    """The command itself, which ends; its exit code and the lines on stderr."""
    done = subprocess.run(
        [sys.executable, "-m", "pipeline", "worker", *settings_flags(settings), *flags],
        cwd=ROOT,
        capture_output=True,
        text=True,
        timeout=60,
        check=False,
    )
    assert done.stdout == ""
    return done.returncode, done.stderr.splitlines()
