"""The worker put together: settings in, a Faust worker out. Nothing happens at import.

Order of a start: everything that can be wrong is checked (versions, settings, topics, port, folder)
before the first record is asked for; the newest release is loaded; then the worker joins its group.
"""

import asyncio
import gc
import logging
import resource
import sys
import time
from collections.abc import Callable
from contextlib import ExitStack, suppress
from dataclasses import dataclass

import faust
import torch
import uvloop
from aiokafka.errors import KafkaError
from prometheus_client import CollectorRegistry

from pipeline.cluster.clients import aiokafka_options, faust_credentials
from pipeline.cluster.records import Record, place_of
from pipeline.cluster.topics import changelog_name, require_topics, topic_id
from pipeline.engine.app import EngineApp, create_engine_app
from pipeline.engine.compat import check_versions
from pipeline.engine.options import EngineOptions
from pipeline.engine.service_log import SERVICE_LOG
from pipeline.engine.stop import end_by
from pipeline.metrics import Metrics
from pipeline.metrics_server import serve
from pipeline.settings import Settings
from pipeline.worker.catalogue import Catalogue
from pipeline.worker.data_folder import claim_data_folder
from pipeline.worker.hotswap import Swapper
from pipeline.worker.recommend import RecommendationProcessor
from pipeline.worker.releases import TopicFollower
from pipeline.worker.served_model import ModelHolder, choose_device
from pipeline.worker.start_watch import StartWatch
from pipeline.worker.users import Users
from state.rocks import RocksStore
from state.store import StateStore

logger = logging.getLogger(__name__)

LAG_PERIOD_S = 1.0
SWITCH_INTERVAL_S = 0.001
QUIET_S = 5.0  # beyond what a fetch may wait for records: Kafka is away then
METADATA_AGE_MS = 30_000  # how soon a worker learns that its topic has other partitions


def engine_options(settings: Settings) -> EngineOptions:
    """Return what the engine needs to know of the settings."""
    worker, kafka = settings.worker, settings.kafka
    return EngineOptions(
        kafka=aiokafka_options(kafka),
        app_id=worker.app_id,
        source=settings.topics.interactions,
        output=settings.topics.recommendations,
        dead_letters=settings.topics.dead_letters,
        changelog=changelog_name(worker.app_id),
        compression=None if settings.topics.compression == "none" else settings.topics.compression,
        batch_events=worker.batch_events,
        max_chunk_records=max(1, worker.batch_events // 4),
        fetch_min_bytes=kafka.fetch_min_bytes,
        fetch_max_wait_ms=kafka.fetch_max_wait_ms,
        checkpoint_interval_s=worker.checkpoint_interval_s,
        checkpoint_max_rows=worker.checkpoint_max_rows,
        transactional=settings.recommend.transactional,
        session_timeout_s=kafka.session_timeout_s,
        drain_timeout_s=worker.drain_timeout_s,
        stop_deadline_s=worker.stop_deadline_s,
        restore_deadline_s=worker.restore_deadline_s,
        watchdog_s=worker.watchdog_s,
    )


def create_app(
    settings: Settings,
    store: StateStore,
    holder: ModelHolder,
    catalogue: Catalogue,
    users: Users,
    metrics: Metrics,
    *,
    partitions: int,
    at_stage: Callable[[str], None] = lambda stage: None,
) -> EngineApp:
    """Build the Faust app; nothing connects before it is started.

    Args:
        settings: All settings.
        store: Keeps the rows.
        holder: The model that serves and the one that will.
        catalogue: What may not be recommended now.
        users: Who is forgotten, and whose items are blocked.
        metrics: Counts what happens.
        partitions: Partition count of the interactions topic.
        at_stage: For crash tests: told every stage of a batch and of a checkpoint that is reached.
    """
    device = choose_device(settings.worker.device)
    processor = RecommendationProcessor(settings, store, holder, catalogue, users, metrics, device)
    kafka = settings.kafka
    app = create_engine_app(
        engine_options(settings),
        processor,
        store,
        partitions=partitions,
        data_dir=settings.worker.data_dir / "faust",
        on_checkpoint=metrics.count_checkpoint,
        at_stage=at_stage,
        broker_credentials=faust_credentials(kafka),
        broker_heartbeat_interval=kafka.heartbeat_interval_s,
        broker_rebalance_timeout=kafka.rebalance_timeout_s,
        broker_request_timeout=max(40.0, 2 * kafka.session_timeout_s),
        broker_commit_interval=0.5,
        consumer_max_fetch_size=kafka.max_fetch_bytes,
        consumer_metadata_max_age_ms=METADATA_AGE_MS,
        consumer_group_instance_id=kafka.group_instance_id,
        table_standby_replicas=settings.worker.standby_replicas,
        web_enabled=False,
    )
    app.on_restored_rows = metrics.count_restored
    app.on_restore_progress = metrics.set_restoring
    app.changelog_id = lambda: topic_id(kafka, changelog_name(settings.worker.app_id)).encode()

    def on_assignment(owned: set[int], seconds: float) -> None:
        metrics.partitions_owned.set(len(owned))
        metrics.restore_seconds.observe(seconds)

    app.on_assignment = on_assignment

    @app.task
    async def observe_lag() -> None:
        while not app.should_stop:
            metrics.set_lag(app.stream_service.lags())
            await asyncio.sleep(LAG_PERIOD_S)

    return app


class StreamWorker(faust.Worker):
    """Faust's worker, which neither takes over logging nor draws on the terminal."""

    logger = SERVICE_LOG

    def __init__(self, app: EngineApp, loop: asyncio.AbstractEventLoop) -> None:
        super().__init__(
            app, loop=loop, override_logging=False, redirect_stdouts=False, quiet=True, daemon=True
        )
        self.spinner = None

    async def _sentinel_task(self) -> None:
        """Stock sleeps a second at the end of every stop."""


@dataclass
class Worker:
    """A worker that is ready to run.

    Attributes:
        health: Answers whether it is fine and ready.
    """

    health: "HealthReport"
    _faust: StreamWorker
    _held: ExitStack  # threads, port and folder

    def run(self) -> None:
        """Run until a signal stops it; leaves by SystemExit with Faust's exit code."""
        # What is here now stays: looking through it takes the collector 0.1 s, and everyone waits.
        gc.collect()
        gc.freeze()
        # The model's thread gives the interpreter up many times a batch, and wants it back soon.
        sys.setswitchinterval(SWITCH_INTERVAL_S)
        with self._held:
            try:
                self._faust.execute_from_commandline()
            except KafkaError as error:  # Kafka went away between the first answer and the start
                end_by(error, "the start")
            except SystemExit as ended:
                self._held.close()
                if not ended.code:
                    logger.info("stopped")
                raise


def create_worker(
    settings: Settings,
    registry: CollectorRegistry,
    *,
    start: StartWatch | None = None,
    at_stage: Callable[[str], None] = lambda stage: None,
    supervised: bool = False,
) -> Worker:
    """Check everything, load the newest release and build a worker.

    Args:
        settings: All settings.
        registry: Where the metrics live.
        start: What watches the start; None: it begins here.
        at_stage: For crash tests, see `create_app`.
        supervised: Whether a supervisor has logged what is odd about the topics.

    Raises:
        PipelineError: Something is not as the settings say; one line that says what to do.
        state.errors.StateError: The data folder is in use or damaged.
    """
    check_versions(allow_untested=settings.worker.allow_untested_versions)
    start = start or StartWatch(settings)
    with ExitStack() as held:
        held.callback(start.over)
        allow_open_files()
        partitions = require_topics(settings, log_notes=not supervised)
        if settings.worker.threads is not None:
            torch.set_num_threads(settings.worker.threads)
        store = RocksStore(settings.worker.data_dir / "states", settings.store)
        held.callback(store.close_all)
        claim_data_folder(settings)
        metrics = Metrics(registry)
        metrics.watch_store(store.stats)
        swapper = Swapper(settings, metrics)
        models_from = swapper.catch_up()
        catalogue, users, topics = Catalogue(), Users(partitions), settings.topics

        def take_item(record: Record) -> None:
            try:
                catalogue.apply(record.key, record.value)
            except (ValueError, RecursionError) as error:
                said = "%s: no item: left out, what held before holds on: %s"
                logger.warning(said, place_of(record), error)

        followers = [
            TopicFollower(settings, topics.models, swapper.hear, models_from),
            TopicFollower(settings, topics.items, take_item),
            TopicFollower(settings, topics.users, users.hear),
        ]
        for follower in followers[1:]:
            follower.catch_up()
        loop = uvloop.new_event_loop()
        asyncio.set_event_loop(loop)
        app = create_app(
            settings,
            store,
            swapper.holder,
            catalogue,
            users,
            metrics,
            partitions=partitions,
            at_stage=at_stage,
        )
        app.on_joined = start.over
        health = HealthReport(app, start)
        metrics.ready.set_function(lambda: health.ready()[0])
        host, port = settings.metrics.host, settings.metrics.worker_port
        held.enter_context(serve(registry, host, port, health=health.alive, ready=health.ready))
        for follower in followers:
            follower.start()
            held.callback(follower.stop)
        for follower in followers:  # all at once, and only then is each waited for
            held.callback(follower.tell_to_stop)
        return Worker(health, StreamWorker(app, loop), held.pop_all())


def allow_open_files() -> None:
    """Raise the soft limit of open files to the hard one: a partition's database has many."""
    _, hard = resource.getrlimit(resource.RLIMIT_NOFILE)
    with suppress(ValueError, OSError):  # macOS names a limit that it does not grant
        resource.setrlimit(resource.RLIMIT_NOFILE, (hard, hard))


class HealthReport:
    """Answers for /healthz and /readyz; asked from the thread of the metrics server."""

    def __init__(self, app: EngineApp, start: StartWatch) -> None:
        self._app = app
        self._start = start
        self._most_quiet_s = QUIET_S + app.engine_options.fetch_max_wait_ms / 1000

    def alive(self) -> tuple[bool, str]:
        """Tell whether work that waits makes progress; a start that takes too long ends itself."""
        starting_s = self._start.seconds()
        if starting_s is not None:
            return True, f"starting for {starting_s:.0f} s"
        stuck_s = self._app.stream_service.pulse.seconds_without_progress()
        limit_s = self._app.engine_options.watchdog_s
        return stuck_s < limit_s, f"{stuck_s:.1f} s without progress (limit {limit_s:g} s)"

    def ready(self) -> tuple[bool, str]:
        """Tell whether the worker's partitions flow."""
        if self._app.rebalancing or not self._app.tables.actives_ready:
            return False, "waiting for partitions or their rows"
        stream = self._app.stream_service
        if stream.quiet_s(time.time()) > self._most_quiet_s:
            return False, "waiting for Kafka to answer a fetch"
        return True, f"partitions {sorted(stream.partitions)}"
