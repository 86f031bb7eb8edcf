"""The sections of the settings; `pipeline.settings` puts them together.

The text under a field is its `--help`. Each section checks itself when it is made; a setting that
breaks its rule raises `SettingsInvalid` with field, rule and value. Durations are seconds, sizes
bytes, `None` is "off" or "chosen for you". Secrets arrive as paths of files, so settings may be
logged whole.
"""

import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.config import MAX_LENGTH, ModelConfig
from pipeline.errors import SettingsInvalid
from pipeline.setting_checks import (
    INT32_MAX,
    LONGEST_WAIT_S,
    check,
    check_device,
    check_host,
    check_port,
    check_positive,
)

WORKER_METRICS_PORT = 9108
TRAINER_METRICS_PORT = 9109


@dataclass(frozen=True, kw_only=True)
class WorkerSettings:
    """The stream processor."""

    app_id: str = "lrurec-recommender"
    """Name of the consumer group and beginning of the changelog topic's name."""

    data_dir: Path = Path(".lrurec/worker")
    """Folder of the states; one worker at a time."""

    batch_events: int = 1000
    """Most events in one micro-batch."""

    checkpoint_interval_s: float = 0.2
    """Time until what moved is made durable; longer with more than 16 partitions, of which a worker
    makes 80 a second durable."""

    checkpoint_max_rows: int = 5000
    """Moved rows that bring the checkpoint forward."""

    drain_timeout_s: float = 8.0
    """How long a rebalance waits for the last checkpoint of leaving partitions."""

    stop_deadline_s: float = 10.0
    """A worker told to stop that is still there after this long ends itself; nothing is lost."""

    restore_deadline_s: float = 600.0
    """Longest time that restoring the states of one partition from the changelog may take; and,
    with kafka.connect_timeout_s added, a start up to there."""

    standby_replicas: int = 0
    """Workers, besides the owner, that keep a copy of each partition's states; the same for all."""

    watchdog_s: float = 60.0
    """A worker that has events waiting and makes no progress for this long ends itself."""

    hot_rows: int = 100_000
    """Users whose states stay on the device between micro-batches. The space doubles where more
    wait for a checkpoint, and stays."""

    device: str = "auto"
    """Where the model runs: cpu, cuda, cuda:N; auto is cuda where there is one, else cpu."""

    threads: int | None = None
    """Threads of the model on the CPU; None: as many as torch finds right, and of several processes
    (--processes) the cores divided by their number."""

    form: Literal["auto", "torch"] = "auto"
    """Form of steps and lists on the CPU: auto compiles the fast one where there is a C++ compiler,
    torch is the one that needs none."""

    cache_dir: Path = Path("~/.cache/lrurec-stream")
    """Folder where the compiled form is kept; only this user may write there."""

    allow_untested_versions: bool = False
    """Start also with versions of Faust or aiokafka that the engine was not tested with."""

    def __post_init__(self) -> None:
        legal = re.fullmatch(r"[a-zA-Z0-9._-]{1,200}", self.app_id)
        rule = "1 to 200 letters, digits, '.', '_' or '-'"
        check(bool(legal), "worker.app_id", rule, self.app_id)
        check_positive(
            "worker",
            {
                "checkpoint_interval_s": self.checkpoint_interval_s,
                "drain_timeout_s": self.drain_timeout_s,
                "stop_deadline_s": self.stop_deadline_s,
                "restore_deadline_s": self.restore_deadline_s,
                "watchdog_s": self.watchdog_s,
            },
            most=LONGEST_WAIT_S,
        )
        check_positive(
            "worker",
            {"batch_events": self.batch_events, "checkpoint_max_rows": self.checkpoint_max_rows},
        )
        check_positive("worker", {"threads": self.threads}, most=INT32_MAX)
        for name in ("hot_rows", "standby_replicas"):
            check(getattr(self, name) >= 0, f"worker.{name}", "at least 0", getattr(self, name))
        check_device("worker.device", self.device)


@dataclass(frozen=True, kw_only=True)
class RecommendSettings:
    """What a recommendation holds."""

    top_k: int = 10
    """Items in every recommendation."""

    exclude_seen: bool = False
    """Leave out the items that the state row remembers of the user."""

    prequential: bool = True
    """Measure, for every event, whether the list in force before it held its item, beside
    popularity and repeat-last."""

    transactional: bool = False
    """Send each recommendation in the transaction of its state: a consumer that reads committed
    gets it exactly once, up to a checkpoint later. Off: at once, and after a crash perhaps again.
    Change it between a graceful stop of all workers and the next start: turned on after a crash, it
    takes lists that had not left for sent."""

    ring: int | None = None
    """Recent items that a state row remembers, at most 100,000. None: as many as a training window
    of the release that serves, and model.max_length while none does."""

    def __post_init__(self) -> None:
        check_positive("recommend", {"top_k": self.top_k})
        check_positive("recommend", {"ring": self.ring}, most=MAX_LENGTH)


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The shape of a new model. A release brings its own."""

    hidden_size: int = 64
    """Width of embeddings and outputs; the state has twice as many complex channels per block."""

    n_blocks: int = 2
    """Blocks, each a linear recurrent unit and a feed-forward network."""

    max_length: int = 50
    """Items of a history that one training window holds; at most 100,000."""

    dropout: float = 0.2
    """Share of activations dropped in training, in embedding and feed-forward network."""

    lru_dropout: float = 0.2
    """Share of activations dropped in training, behind the linear recurrent unit."""

    def __post_init__(self) -> None:
        try:
            self.config(n_items=1)
        except ValueError as error:
            msg = f"model.{error}"
            raise SettingsInvalid(msg) from error

    @property
    def state_size(self) -> int:
        """Complex channels of one block's state."""
        return 2 * self.hidden_size

    def config(self, n_items: int) -> ModelConfig:
        """Return the configuration of a model of this shape for a vocabulary of n_items."""
        return ModelConfig(
            n_items=n_items,
            hidden_size=self.hidden_size,
            state_size=self.state_size,
            n_blocks=self.n_blocks,
            max_length=self.max_length,
            dropout=self.dropout,
            lru_dropout=self.lru_dropout,
        )


@dataclass(frozen=True, kw_only=True)
class TrainerSettings:
    """What the trainer reads, when it trains and where releases go."""

    releases_dir: Path = Path(".lrurec/releases")
    """Folder of the releases; workers must see it under the same path."""

    period_s: float | None = 3600.0
    """Train again this long after the last training began; None: never by time."""

    min_new_events: int | None = 100_000
    """Train again as soon as this many events have come in; None: never by number."""

    window_events: int | None = None
    """Train on the last N events of the topic only; None: on all."""

    window_s: float | None = None
    """Train on the events of the last so many seconds only, by their records' timestamps; None: on
    all."""

    min_item_count: int = 1
    """Items with fewer events than this are left out of the model."""

    validation_users: int = 10_000
    """Most users whose last item is held out: half choose the best weights, half judge them."""

    max_recall_drop: float = 0.1
    """Most that a release's Recall@10 may lie below that of the release that serves, as a share of
    it; a worse one is not announced."""

    device: str = "auto"
    """Where the model is trained: cpu, cuda, cuda:N; auto is cuda where there is one, else cpu."""

    threads: int | None = None
    """Threads of the training on the CPU; None: as many as torch finds right."""

    scan: Literal["auto", "loop"] = "auto"
    """Form of the recurrence on the CPU: auto compiles the fast one where there is a C++ compiler,
    loop is the one that needs none."""

    cache_dir: Path = Path("~/.cache/lrurec-stream")
    """Folder where the compiled recurrence is kept; only this user may write there."""

    def __post_init__(self) -> None:
        check_positive(
            "trainer",
            {
                "period_s": self.period_s,
                "min_new_events": self.min_new_events,
                "window_events": self.window_events,
                "window_s": self.window_s,
                "min_item_count": self.min_item_count,
                "validation_users": self.validation_users,
            },
        )
        check_positive("trainer", {"threads": self.threads}, most=INT32_MAX)
        drop = self.max_recall_drop
        check(0 <= drop <= 1, "trainer.max_recall_drop", "in [0, 1]", drop)
        check_device("trainer.device", self.device)


@dataclass(frozen=True, kw_only=True)
class MetricsSettings:
    """Where Prometheus and health checks are answered."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one."""

    port: int | None = None
    """Port of /metrics, /healthz and /readyz. None: 9108 of a worker, 9109 of a trainer, so that
    both run on one machine as they are; 0: not served."""

    def __post_init__(self) -> None:
        check_host("metrics.host", self.host)
        if self.port is not None:
            check_port("metrics.port", self.port)

    @property
    def worker_port(self) -> int:
        """The port of a worker."""
        return WORKER_METRICS_PORT if self.port is None else self.port

    @property
    def trainer_port(self) -> int:
        """The port of a trainer."""
        return TRAINER_METRICS_PORT if self.port is None else self.port


@dataclass(frozen=True, kw_only=True)
class LogSettings:
    """The log, written to stderr."""

    level: Literal["DEBUG", "INFO", "WARNING", "ERROR"] = "INFO"
    """Least severe line that is written."""

    format: Literal["text", "json"] = "text"
    """Lines for people or one JSON object a line."""


@dataclass(frozen=True, kw_only=True)
class BrokerSettings:
    """The local Kafka of `lrurec broker` and `lrurec demo`."""

    data_dir: Path = Path(".lrurec/broker")
    """Folder of its log segments, configuration and log."""

    host: str = "127.0.0.1"
    """Address that it listens on."""

    port: int = 29092
    """Port that clients reach it at; 0: any that is free."""

    heap_mib: int = 512
    """Memory of its Java heap, in MiB."""

    java: Path | None = None
    """The java program; None: the one installed with this package."""

    def __post_init__(self) -> None:
        check_host("broker.host", self.host)
        check_port("broker.port", self.port)
        check(self.heap_mib >= 128, "broker.heap_mib", "at least 128", self.heap_mib)
