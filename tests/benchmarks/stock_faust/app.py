"""A Faust app as Faust's users write it, with every precaution that needs no change of Faust.

    python -m tests.benchmarks.stock_faust.app STAGE:N:SIGNAL --settings...

The command line is that of `tests.worker_process`.

One agent takes micro-batches, keeps a row for each user in a Table on RocksDB, guards each by the
offset in it, writes row and changelog, answers with the last offset, and lets a batch be
acknowledged only when Kafka has confirmed all that it sent. Sessions, heartbeats, partitions and
topics are those of our own worker.
"""

import asyncio
import sys
import weakref
from typing import Any

import faust
from faust.streams import _current_event

from pipeline.cluster.topics import TABLE_NAME
from pipeline.commands.worker import Command
from pipeline.settings import Settings, parse_command
from tests.benchmarks.stock_faust.row import UserRow
from tests.worker_process import signal_at_stage

RAW = {
    "key_type": bytes,
    "key_serializer": "raw",
    "value_type": bytes,
    "value_serializer": "raw",
}
TAKE_WITHIN_S = 0.02


def create_app(settings: Settings) -> faust.App:
    kafka = settings.kafka
    return faust.App(
        settings.worker.app_id,
        broker=f"kafka://{kafka.bootstrap_servers}",
        store="rocksdb://",
        datadir=str(settings.worker.data_dir),
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=settings.topics.partitions,
        consumer_auto_offset_reset="earliest",
        broker_session_timeout=kafka.session_timeout_s,
        broker_heartbeat_interval=kafka.heartbeat_interval_s,
        broker_rebalance_timeout=kafka.rebalance_timeout_s,
        broker_commit_interval=0.5,
        stream_wait_empty=True,
        stream_buffer_maxsize=32768,
        producer_linger=0.005,
        producer_max_batch_size=1_000_000,
        web_host="127.0.0.1",
        web_port=settings.metrics.port,
        canonical_url=f"http://127.0.0.1:{settings.metrics.port}",
        env_prefix="LRUREC_FAUST_",  # the environment would override what stands here
    )


def main() -> None:
    settings = parse_command(Command, sys.argv[2:], prog="worker").settings
    reach = signal_at_stage(sys.argv[1])
    app = create_app(settings)
    source = app.topic(settings.topics.interactions, **RAW)
    output = app.topic(settings.topics.recommendations, **RAW)
    table = app.Table(
        TABLE_NAME,
        partitions=settings.topics.partitions,
        key_type=bytes,
        value_type=bytes,
        options={"driver": "rocksdict", "block_cache_size": 32 << 20},
    )

    @app.agent(source)
    async def interactions(stream: Any) -> None:
        async for events in stream.take_events(settings.worker.batch_events, TAKE_WITHIN_S):
            newest = {(event.message.partition, event.key): event for event in events}
            rows: dict[tuple[int, bytes], UserRow] = {}
            for event in events:
                user = event.message.partition, event.key
                if user not in rows:
                    # A Table finds a row's partition by the event in work, which take() hides.
                    _current_event.set(weakref.ref(event))
                    rows[user] = UserRow.decode(table.get(event.key))
                rows[user] = rows[user].after(event.message.offset)
            reach("computed")
            sent = []
            for (partition, key), row in rows.items():
                _current_event.set(weakref.ref(newest[partition, key]))
                # What `table[key] = value` does, but the confirmation can be awaited.
                sent.append(table.send_changelog(partition, key, row.encode()))
                table.data[key] = row.encode()
                value = b'{"event":{"partition":%d,"offset":%d}}' % (partition, row.offset)
                sent.append(await output.send(key=key, value=value, partition=partition))
            reach("sent")
            await asyncio.gather(*sent)
            reach("rows-sent")

    faust.Worker(app, loglevel="INFO", redirect_stdouts=False).execute_from_commandline()


if __name__ == "__main__":
    main()
