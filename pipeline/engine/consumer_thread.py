"""The thread in which the engine's consumer speaks to Kafka: it fetches, seeks and commits.

Its loop is its own, so that heartbeats go on whatever the main loop does. What is done with the
chunks is the main loop's: `pipeline.engine.transport`.
"""

import asyncio
import time
from collections.abc import Iterable, Mapping
from typing import Any

from aiokafka.errors import CommitFailedError, ConsumerStoppedError, IllegalStateError, KafkaError
from aiokafka.structs import OffsetAndMetadata
from faust.transport.consumer import ensure_TP
from faust.transport.drivers import aiokafka as driver
from faust.types import TP

from pipeline.cluster.header_names import tolerate_bad_names
from pipeline.cluster.lost_connections import tolerate_lost_connections
from pipeline.engine.chunks import Chunk, fetch_chunks
from pipeline.engine.positions import find_positions
from pipeline.engine.service_log import SERVICE_LOG
from pipeline.engine.stop import end_by

MEMBERSHIP_S = 1.0


def _end_if_failed(refreshing: asyncio.Task[None]) -> None:
    """End the process: whoever asks that task for the cluster's metadata waits for ever."""
    if not refreshing.cancelled() and (error := refreshing.exception()) is not None:
        end_by(error, "refreshing the cluster's metadata")


class ConsumerThread(driver.AIOKafkaConsumerThread):
    """Faust's consumer thread; fetches chunks and can be woken."""

    logger = SERVICE_LOG
    _waiter: asyncio.Future[None] | None = None

    async def on_start(self) -> None:
        """Connect, and watch the tasks of aiokafka's that nothing else watches."""
        await super().on_start()
        self._ensure_consumer()._client._sync_task.add_done_callback(_end_if_failed)
        self.add_future(self._watch_membership())

    async def _watch_membership(self) -> None:
        """End the process where the group does not take it.

        aiokafka keeps such an error for the next call of its `getmany`, which nobody here calls,
        and waits: without partitions, and without a word.
        """
        coordinator = self._ensure_consumer()._coordinator
        while not (self.should_stop or coordinator._closing.done()):
            try:
                coordinator.check_errors()
            except asyncio.CancelledError:  # of its own task, in a stop
                return
            except Exception as error:
                end_by(error, "joining the group")
            await self.sleep(MEMBERSHIP_S)

    def _create_worker_consumer(self, transport: Any) -> Any:
        tolerate_bad_names()
        tolerate_lost_connections()
        consumer = super()._create_worker_consumer(transport)
        options = self.app.engine_options
        consumer._fetch_max_wait_ms = options.fetch_max_wait_ms  # stock hard-codes 1500
        consumer._fetch_min_bytes = options.fetch_min_bytes
        # A click of an aborted transaction never happened. Whoever writes the source without
        # transactions loses no time by this.
        consumer._isolation_level = "read_committed"
        return consumer

    async def _fetch_records(
        self,
        consumer: Any,
        active_partitions: Any,
        timeout: float | None = None,
        max_records: int | None = None,
    ) -> dict[Any, list[Chunk]]:
        fetcher = consumer._fetcher
        if not self.consumer.flow_active:
            return {}
        if consumer._closed or fetcher._closed:
            raise ConsumerStoppedError
        with fetcher._subscriptions.fetch_context():
            return await fetch_chunks(
                fetcher,
                active_partitions,
                timeout or 0.0,
                self.app.engine_options.max_chunk_records,
                flowing=lambda: self.consumer.flow_active,
                on_wait=self._note_waiter,
            )

    def _note_waiter(self, waiter: asyncio.Future[None]) -> None:
        self._waiter = waiter

    def wake(self) -> None:
        """End a running wait for records now. Called in the thread's own loop."""
        if self._waiter is not None and not self._waiter.done():
            self._waiter.set_result(None)

    async def _commit(self, offsets: Mapping[TP, int]) -> bool:
        """Commit source offsets; False where the group has moved on, and they are read again."""
        try:
            await self._ensure_consumer().commit(
                {
                    driver.ensure_aiokafka_TP(tp): OffsetAndMetadata(offset, self.consumer.note(tp))
                    for tp, offset in offsets.items()
                }
            )
        except (CommitFailedError, IllegalStateError):
            return False
        except KafkaError as error:
            end_by(error, "committing what was read")
        self.tp_last_committed_at.update(dict.fromkeys(offsets, time.monotonic()))
        return True

    async def seek_sources(self, tps: Iterable[TP]) -> dict[TP, int]:
        """Seek partitions to where reading begins; it is committed there from then on.

        Returns:
            The position of each.
        """
        consumer, changelog = self._ensure_consumer(), self.app.engine_options.changelog
        wanted = [driver.ensure_aiokafka_TP(tp) for tp in tps]
        if not wanted:
            return {}
        committed, new, notes = await find_positions(consumer, wanted, changelog)
        self.consumer.found_notes.update({ensure_TP(tp): note for tp, note in notes.items()})
        if new:  # before anything is read: see `find_positions`
            await self._commit({ensure_TP(tp): offset for tp, offset in new.items()})
        positions = {**committed, **new}
        for tp, offset in positions.items():
            consumer.seek(tp, offset)
        return {ensure_TP(tp): offset for tp, offset in positions.items()}
