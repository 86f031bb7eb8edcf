"""What the engine can be told, apart from Faust's own settings."""

from dataclasses import dataclass, field
from typing import Any


@dataclass(frozen=True, kw_only=True)
class EngineOptions:
    """Options of the engine; `pipeline.worker.app` fills them from the settings.

    Attributes:
        kafka: Keyword arguments for every aiokafka client of the engine (servers, security).
        app_id: Name of the consumer group; prefix of the transactional ids.
        source: Topic of the interactions.
        output: Topic of the recommendations.
        dead_letters: Topic of the records that cannot be used.
        changelog: Topic of the rows.
        compression: Of everything that is sent: gzip, snappy, lz4 or zstd; None: none.
        batch_events: Most events in one micro-batch (a chunk is never split).
        max_chunk_records: Most records that cross Faust in one message.
        fetch_min_bytes: The broker answers a fetch when it has this much, or after
            `fetch_max_wait_ms`.
        fetch_max_wait_ms: See `fetch_min_bytes`.
        checkpoint_interval_s: Time between two checkpoints of a partition.
        transactional: Outputs are part of their rows' transaction, so that whoever reads committed
            gets each once, a checkpoint later; otherwise they leave at once.
        checkpoint_max_rows: A partition with this many moved rows is checkpointed before its time.
        session_timeout_s: The consumer group's session; a process frozen for longer ends itself.
        drain_timeout_s: How long a rebalance waits for work in flight before it is abandoned (and
            read again).
        stop_deadline_s: How long a graceful stop may take.
        restore_deadline_s: How long restoring one partition may take.
        watchdog_s: Work waiting for this long without progress ends the process.
    """

    kafka: dict[str, Any] = field(repr=False)
    app_id: str
    source: str
    output: str
    dead_letters: str
    changelog: str
    compression: str | None = None
    batch_events: int = 1000
    max_chunk_records: int = 250
    fetch_min_bytes: int = 16_384
    fetch_max_wait_ms: int = 12
    checkpoint_interval_s: float = 0.2
    checkpoint_max_rows: int = 5000
    transactional: bool = False
    session_timeout_s: float = 10.0
    drain_timeout_s: float = 8.0
    stop_deadline_s: float = 10.0
    restore_deadline_s: float = 600.0
    watchdog_s: float = 60.0
