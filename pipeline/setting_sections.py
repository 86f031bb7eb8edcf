"""The sections of the settings; `pipeline.settings` puts them together.

The text under a field is its `--help`. Each section checks itself when it is made; a setting that
breaks its rule raises `SettingsInvalid` with field, rule and value. Durations are seconds, sizes
bytes, `None` is "off" or "chosen for you". Secrets arrive as paths of files, so settings may be
logged whole.
"""

import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from models.config import ModelConfig
from pipeline.errors import SettingsInvalid
from pipeline.setting_kinds import Names

WORKER_METRICS_PORT = 9108
TRAINER_METRICS_PORT = 9109


def _check(holds: bool, name: str, rule: str, value: object) -> None:
    if not holds:
        msg = f"{name} must be {rule}, got {value!r}"
        raise SettingsInvalid(msg)


def _check_positive(section: str, values: Mapping[str, float | None]) -> None:
    for name, value in values.items():
        holds = value is None or (math.isfinite(value) and value > 0)
        _check(holds, f"{section}.{name}", "over 0", value)


def _check_port(name: str, port: int) -> None:
    _check(0 <= port <= 65535, name, "a port, 0 to 65535", port)


def _check_device(name: str, device: str) -> None:
    legal = re.fullmatch(r"auto|cpu|cuda(:\d+)?", device)
    _check(bool(legal), name, "auto, cpu, cuda or cuda:N", device)


@dataclass(frozen=True, kw_only=True)
class KafkaSettings:
    """The cluster and how this program talks to it."""

    bootstrap_servers: str = "127.0.0.1:29092"
    """Brokers to ask first, host:port, separated by commas."""

    security_protocol: Literal["PLAINTEXT", "SSL", "SASL_PLAINTEXT", "SASL_SSL"] = "PLAINTEXT"
    """How connections are secured."""

    sasl_mechanism: Literal["PLAIN", "SCRAM-SHA-256", "SCRAM-SHA-512"] = "PLAIN"
    """How a SASL connection proves who it is."""

    username: str | None = None
    """Name for SASL."""

    password_file: Path | None = None
    """File whose text is the password for SASL (one trailing line end is cut)."""

    ssl_ca_file: Path | None = None
    """Certificates (PEM) that may sign the brokers'; None: those the system trusts."""

    ssl_cert_file: Path | None = None
    """This client's certificate (PEM), where brokers ask for one."""

    ssl_key_file: Path | None = None
    """This client's private key (PEM)."""

    connect_timeout_s: float = 15.0
    """How long a command waits for the cluster's first answer."""

    session_timeout_s: float = 10.0
    """A worker that is silent for this long loses its partitions."""

    heartbeat_interval_s: float = 0.5
    """Pause between signs of life; also how soon a worker learns of a rebalance."""

    rebalance_timeout_s: float = 20.0
    """How long a rebalance waits for a worker to let its partitions go."""

    fetch_min_bytes: int = 16384
    """A fetch waits until this much has come in ..."""

    fetch_max_wait_ms: int = 12
    """... or until this much time has passed: what makes a micro-batch."""

    max_fetch_bytes: int = 262144
    """Most bytes of one partition in one fetch."""

    group_instance_id: str | None = None
    """Fixed name of this worker: its restart within the session moves no partition."""

    def __post_init__(self) -> None:
        servers = self.bootstrap_servers.split(",")
        _check(
            all(re.fullmatch(r"\s*\S+:\d{1,5}\s*", server) for server in servers),
            "kafka.bootstrap_servers",
            "host:port, several separated by commas",
            self.bootstrap_servers,
        )
        _check_positive(
            "kafka",
            {
                "connect_timeout_s": self.connect_timeout_s,
                "session_timeout_s": self.session_timeout_s,
                "heartbeat_interval_s": self.heartbeat_interval_s,
                "rebalance_timeout_s": self.rebalance_timeout_s,
                "fetch_min_bytes": self.fetch_min_bytes,
                "fetch_max_wait_ms": self.fetch_max_wait_ms,
                "max_fetch_bytes": self.max_fetch_bytes,
            },
        )
        _check(
            self.heartbeat_interval_s <= self.session_timeout_s / 3,
            "kafka.heartbeat_interval_s",
            f"at most a third of session_timeout_s ({self.session_timeout_s})",
            self.heartbeat_interval_s,
        )
        if self.security_protocol.startswith("SASL"):
            for name in ("username", "password_file"):
                value = getattr(self, name)
                _check(value is not None, f"kafka.{name}", "given for SASL", value)
        _check(
            (self.ssl_cert_file is None) == (self.ssl_key_file is None),
            "kafka.ssl_cert_file and kafka.ssl_key_file",
            "given both or neither",
            (self.ssl_cert_file, self.ssl_key_file),
        )


@dataclass(frozen=True, kw_only=True)
class TopicSettings:
    """The topics' names and what `lrurec topics create` makes of them."""

    interactions: str = "lrurec.interactions.v1"
    """Clicks come in here; may be a topic that exists already."""

    recommendations: str = "lrurec.recommendations.v1"
    """Recommendations leave here, on the partition number that the click came from."""

    dead_letters: str = "lrurec.interactions-dead.v1"
    """Records that could not be used, with their bytes and the reason."""

    models: str = "lrurec.models.v1"
    """Announced releases; one partition."""

    items: str = "lrurec.items.v1"
    """The catalogue."""

    users: str = "lrurec.users.v1"
    """Commands about users; nothing reads them yet."""

    partitions: int = 4
    """Partitions of every topic keyed by user. Must not change while states exist."""

    replication_factor: int = 1
    """Copies of every partition."""

    compression: Literal["none", "gzip", "snappy", "lz4", "zstd"] = "none"
    """Compression of what this program sends; any compression is read."""

    def __post_init__(self) -> None:
        kinds = ("interactions", "recommendations", "dead_letters", "models", "items", "users")
        names = {kind: getattr(self, kind) for kind in kinds}
        for kind, name in names.items():
            legal = re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", name) and name not in {".", ".."}
            rule = "1 to 249 letters, digits, '.', '_' or '-'"
            _check(bool(legal), f"topics.{kind}", rule, name)
        for kind, name in names.items():
            same = next(other for other in kinds if names[other] == name)
            _check(same == kind, f"topics.{kind}", f"another topic than topics.{same}", name)
        _check(self.partitions >= 1, "topics.partitions", "at least 1", self.partitions)
        replicas = self.replication_factor
        _check(1 <= replicas <= 32767, "topics.replication_factor", "1 to 32767", replicas)


@dataclass(frozen=True, kw_only=True)
class FieldSettings:
    """Where an interaction's facts stand in its JSON: dotted paths such as `payload.sku`."""

    user_id: str = "user_id"
    """The user: text, or an integer, which counts as its decimal text."""

    item_id: str = "item_id"
    """The item: text, or an integer, which counts as its decimal text."""

    timestamp: str | None = "timestamp_ms"
    """The time of the interaction. None, or absent in an event: the record's own timestamp."""

    timestamp_unit: Literal["auto", "s", "ms", "us", "iso"] = "auto"
    """Form of the timestamp: seconds, milliseconds, microseconds or ISO 8601 text. auto: text is
    ISO 8601; a number under 1e11 is seconds, under 1e14 milliseconds, else microseconds."""

    event_type: str | None = "event_type"
    """The kind of interaction; read only when accepted_event_types is set."""

    event_id: str | None = "event_id"
    """The event's own id, by which a repeated event is known. None: repeats count."""

    accepted_event_types: Names = ()
    """The kinds that count (view,cart); others, and events without one, are skipped. Empty: all."""

    max_id_bytes: int = 256
    """Longest id, in UTF-8 bytes."""

    max_future_s: float = 86400.0
    """Most that an event's time may lie beyond its record's timestamp."""

    def __post_init__(self) -> None:
        names = ("user_id", "item_id", "timestamp", "event_type", "event_id")
        paths = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name, path in paths.items():
            _check(all(path.split(".")), f"fields.{name}", "names joined by single dots", path)
            plain = not re.search(r'["\\\x00-\x1f\ud800-\udfff]', path)
            rule = "free of quotes, backslashes and control characters"
            _check(plain, f"fields.{name}", rule, path)
            for other, longer in paths.items():
                rule = f"no part of the path of fields.{other} ({longer})"
                _check(not longer.startswith(path + "."), f"fields.{name}", rule, path)
        types = self.accepted_event_types
        _check(all(types), "fields.accepted_event_types", "without empty names", types)
        _check(
            not types or self.event_type is not None,
            "fields.event_type",
            "a path, since fields.accepted_event_types is set",
            self.event_type,
        )
        _check_positive("fields", {"max_id_bytes": self.max_id_bytes})
        future = self.max_future_s
        finite = math.isfinite(future) and future >= 0
        _check(finite, "fields.max_future_s", "finite and at least 0", future)


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
    """Longest time until what moved is made durable."""

    checkpoint_max_rows: int = 5000
    """Moved rows that bring the checkpoint forward."""

    drain_timeout_s: float = 8.0
    """How long a rebalance waits for the last checkpoint of leaving partitions."""

    stop_deadline_s: float = 10.0
    """A worker told to stop that is still there after this long ends itself; nothing is lost."""

    restore_deadline_s: float = 600.0
    """Longest time that restoring the states of one partition from the changelog may take."""

    standby_replicas: int = 0
    """Workers, besides the owner, that keep a copy of each partition's states; the same for all."""

    watchdog_s: float = 60.0
    """A worker that has events waiting and makes no progress for this long ends itself."""

    hot_rows: int = 100_000
    """Users whose states stay on the device between micro-batches."""

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
        _check(bool(legal), "worker.app_id", rule, self.app_id)
        _check_positive(
            "worker",
            {
                "batch_events": self.batch_events,
                "checkpoint_interval_s": self.checkpoint_interval_s,
                "checkpoint_max_rows": self.checkpoint_max_rows,
                "drain_timeout_s": self.drain_timeout_s,
                "stop_deadline_s": self.stop_deadline_s,
                "restore_deadline_s": self.restore_deadline_s,
                "watchdog_s": self.watchdog_s,
                "threads": self.threads,
            },
        )
        for name in ("hot_rows", "standby_replicas"):
            _check(getattr(self, name) >= 0, f"worker.{name}", "at least 0", getattr(self, name))
        _check_device("worker.device", self.device)


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
    Change it between a graceful stop and the next start."""

    ring: int | None = None
    """Recent items that a state row remembers. None: as many as a training window of the release
    that serves, and model.max_length while none does."""

    def __post_init__(self) -> None:
        _check_positive("recommend", {"top_k": self.top_k, "ring": self.ring})


@dataclass(frozen=True, kw_only=True)
class ModelSettings:
    """The shape of a new model. A release brings its own."""

    hidden_size: int = 64
    """Width of embeddings and outputs; the state has twice as many complex channels per block."""

    n_blocks: int = 2
    """Blocks, each a linear recurrent unit and a feed-forward network."""

    max_length: int = 50
    """Items of a history that one training window holds."""

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
    """Train on the events of the last so many seconds only; None: on all."""

    min_item_count: int = 1
    """Items with fewer events than this are left out of the model."""

    validation_users: int = 10_000
    """Most users whose last item is held out, to choose the best weights and to judge a release."""

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
        _check_positive(
            "trainer",
            {
                "period_s": self.period_s,
                "min_new_events": self.min_new_events,
                "window_events": self.window_events,
                "window_s": self.window_s,
                "min_item_count": self.min_item_count,
                "validation_users": self.validation_users,
                "threads": self.threads,
            },
        )
        drop = self.max_recall_drop
        _check(0 <= drop <= 1, "trainer.max_recall_drop", "in [0, 1]", drop)
        _check_device("trainer.device", self.device)


@dataclass(frozen=True, kw_only=True)
class MetricsSettings:
    """Where Prometheus and health checks are answered."""

    host: str = "127.0.0.1"
    """Address to listen on; 0.0.0.0 is every one."""

    port: int | None = None
    """Port of /metrics, /healthz and /readyz. None: 9108 of a worker, 9109 of a trainer, so that
    both run on one machine as they are; 0: not served."""

    def __post_init__(self) -> None:
        if self.port is not None:
            _check_port("metrics.port", self.port)

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
        _check_port("broker.port", self.port)
        _check(self.heap_mib >= 128, "broker.heap_mib", "at least 128", self.heap_mib)
