"""Events without rest: some with ids that repeat, and broken records."""

import asyncio
import random
import threading

import aiokafka
import msgspec
from aiokafka.errors import KafkaError

from pipeline.settings import Settings

ITEMS = [f"item-{i}" for i in range(60)]
USERS = 500
TICK_S = 0.1
GIVE_UP_MS = 120_000  # longer than Kafka is ever away: nothing that was sent is given up


class Load(threading.Thread):
    """One producer that sends at a steady rate, and waits while Kafka is away.

    Attributes:
        sent: Records that Kafka has confirmed.
        error: What ended it too early.
    """

    def __init__(self, settings: Settings, *, seed: int, events_per_s: int) -> None:
        super().__init__(name="load", daemon=True)
        self._settings = settings
        self._rng = random.Random(seed)
        self._per_tick = round(events_per_s * TICK_S)
        self._stopping = threading.Event()
        self._made = 0
        self.sent = 0
        self.error: KafkaError | None = None

    def run(self) -> None:
        try:
            asyncio.run(self._send())
        except KafkaError as error:
            self.error = error

    def stop(self) -> None:
        """Let what is on its way arrive."""
        self._stopping.set()
        if self.is_alive():
            self.join()

    async def _send(self) -> None:
        producer = aiokafka.AIOKafkaProducer(
            bootstrap_servers=self._settings.kafka.bootstrap_servers,
            enable_idempotence=True,
            request_timeout_ms=GIVE_UP_MS,
        )
        await producer.start()
        try:
            due_s = asyncio.get_running_loop().time()
            while not self._stopping.is_set():
                records = [self._next_record() for _ in range(self._per_tick)]
                topic = self._settings.topics.interactions
                futures = [
                    await producer.send(topic, key=key, value=value, partition=partition)
                    for partition, key, value in records
                ]
                await asyncio.gather(*futures)
                self.sent += len(futures)
                now_s = asyncio.get_running_loop().time()
                due_s = max(due_s + TICK_S, now_s)  # what was not sent in time is not made up for
                await asyncio.sleep(due_s - now_s)
        finally:
            await producer.stop()

    def _next_record(self) -> tuple[int, bytes, bytes]:
        rng = self._rng
        self._made += 1
        user = min(USERS - 1, int(rng.expovariate(5 / USERS)))
        event = {
            "user_id": f"user-{user}",
            "item_id": rng.choice(ITEMS),
            "timestamp_ms": 1_700_000_000_000 + self._made,
        }
        if rng.random() < 0.2:
            event["event_id"] = f"event-{rng.randrange(self._made)}"
        value = msgspec.json.encode(event) if rng.random() < 0.995 else b"broken"
        return user % self._settings.topics.partitions, b"user-%d" % user, value
