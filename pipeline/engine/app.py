"""The Faust app on the engine's transport, table and restore."""

import logging
import threading
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import faust

from pipeline.cluster.reachable import pass_over_silent_servers
from pipeline.cluster.topics import TABLE_NAME, changelog_name
from pipeline.engine import table, transport
from pipeline.engine.options import EngineOptions
from pipeline.engine.processor import Processor
from pipeline.engine.restore import TableManager
from pipeline.engine.service_log import SERVICE_LOG
from pipeline.engine.stop import ExitCode, end_by, end_process
from pipeline.engine.stream import StreamService
from state.store import StateStore

_log = logging.getLogger(__name__)

RAW: dict[str, Any] = {
    "key_type": bytes,
    "key_serializer": "raw",
    "value_type": bytes,
    "value_serializer": "raw",
}


class EngineApp(faust.App):
    """Faust's app with a stream service, a bounded stop and hooks for figures.

    Attributes:
        engine_options: Options of the engine.
        stream_service: Everything between the agent and the commit.
        on_joined: Is called with each assignment, once only its restores are left to do, which have
            deadlines of their own.
        on_assignment: Is told (owned partitions, seconds) when an assignment flows.
        on_restored_rows: Is told how many changelog records were applied, and first whether they
            were a standby's.
        on_restore_progress: Is told how many offsets of the changelog each partition lacks, first
            of those that are being restored, then of standbys.
        changelog_id: Asks for what tells the changelog from one that is made anew under its name;
            called in a thread of its own.
    """

    logger = SERVICE_LOG
    engine_options: EngineOptions
    stream_service: StreamService
    on_joined: Callable[[], None] = staticmethod(lambda: None)
    on_assignment: Callable[[set[int], float], None] = staticmethod(
        lambda partitions, seconds: None
    )
    on_restored_rows: Callable[[bool, int], None] = staticmethod(lambda standby, rows: None)
    on_restore_progress: Callable[[Mapping[int, int], Mapping[int, int]], None] = staticmethod(
        lambda restoring, standbys: None
    )
    changelog_id: Callable[[], bytes] = staticmethod(lambda: b"")

    async def on_start(self) -> None:
        """Say that from here on Kafka is waited for."""
        _log.info("joining group %s", self.engine_options.app_id)
        await super().on_start()

    def _crash(self, reason: BaseException) -> None:
        """End at once where any part of Faust gives up: its own way down acknowledges things."""
        end_by(reason, "Faust")

    def _on_rebalance_when_stopped(self) -> None:
        """Leave the client open: the consumer's thread would wait for a closed one for ever."""

    async def _stop_consumer(self) -> None:
        deadline_s = self.engine_options.stop_deadline_s
        timer = threading.Timer(
            deadline_s,
            lambda: end_process(
                ExitCode.STOP_DEADLINE,
                "the stop took longer than %.0f s: ended; what was in flight is read again",
                deadline_s,
            ),
        )
        timer.daemon = True
        timer.start()
        _log.info("stopping: partitions %s", sorted(self.stream_service.partitions))
        await super()._stop_consumer()


def create_engine_app(
    options: EngineOptions,
    processor: Processor,
    store: StateStore,
    *,
    partitions: int,
    data_dir: Path,
    on_checkpoint: Callable[[int, float], None] = lambda rows, seconds: None,
    at_stage: Callable[[str], None] = lambda stage: None,
    **faust_settings: Any,
) -> EngineApp:
    """Build the app: one source topic, one table, one agent. Nothing connects yet.

    Args:
        options: Engine options; `options.changelog` has to be the one of `options.app_id`.
        processor: Turns records into rows and outputs.
        store: Keeps the rows.
        partitions: Partition count of the source topic, and so of everything else.
        data_dir: For Faust's own files.
        on_checkpoint: Is told (rows, seconds) after each checkpoint.
        at_stage: For crash tests: told every stage that is reached.
        **faust_settings: Passed to `faust.App`.

    Returns:
        The app, to be run by `faust.Worker`.
    """
    expected = changelog_name(options.app_id)
    if options.changelog != expected:
        msg = f"changelog: Faust names it {expected!r}, got {options.changelog!r}"
        raise ValueError(msg)
    transport.register()
    pass_over_silent_servers()
    table.register()
    servers = options.kafka["bootstrap_servers"]
    app = EngineApp(
        options.app_id,
        broker=[f"{transport.SCHEME}://{server}" for server in servers],
        store=f"{table.SCHEME}://",
        datadir=str(data_dir),
        TableManager=TableManager,
        topic_disable_leader=True,
        topic_allow_declare=False,
        topic_partitions=partitions,
        consumer_auto_offset_reset="earliest",
        stream_buffer_maxsize=128,  # chunks, not records
        stream_wait_empty=True,
        broker_session_timeout=options.session_timeout_s,
        # Faust lets the environment override arguments; our settings reject this prefix
        env_prefix="LRUREC_FAUST_",
        **faust_settings,
    )
    app.engine_options = options
    source = app.topic(options.source, **RAW)
    app.Table(TABLE_NAME, key_type=bytes, value_type=bytes, partitions=partitions)
    app.stream_service = StreamService(
        app,
        options,
        processor,
        store,
        on_checkpoint=on_checkpoint,
        at_stage=at_stage,
        beacon=app.beacon,
    )

    @app.agent(source)
    async def interactions(stream: Any) -> None:
        async for event in stream.events():
            event.message.incref()  # the checkpoint acknowledges it, not this loop
            await app.stream_service.offer(event)

    return app
