"""The sections of the settings about the cluster, its topics and the events in them."""

import math
import re
from dataclasses import dataclass
from pathlib import Path
from typing import Literal

from pipeline.setting_checks import INT32_MAX, LONGEST_WAIT_S, check, check_positive
from pipeline.setting_kinds import Names

NAME_RULE = "1 to 249 letters, digits, '.', '_' or '-'"


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
        check(
            all(_names_server(server) for server in servers),
            "kafka.bootstrap_servers",
            "host:port, several separated by commas",
            self.bootstrap_servers,
        )
        check_positive(
            "kafka",
            {
                "connect_timeout_s": self.connect_timeout_s,
                "session_timeout_s": self.session_timeout_s,
                "heartbeat_interval_s": self.heartbeat_interval_s,
                "rebalance_timeout_s": self.rebalance_timeout_s,
            },
            most=LONGEST_WAIT_S,
        )
        check_positive(
            "kafka",
            {
                "fetch_min_bytes": self.fetch_min_bytes,
                "fetch_max_wait_ms": self.fetch_max_wait_ms,
                "max_fetch_bytes": self.max_fetch_bytes,
            },
            most=INT32_MAX,
        )
        check(
            self.heartbeat_interval_s <= self.session_timeout_s / 3,
            "kafka.heartbeat_interval_s",
            f"at most a third of session_timeout_s ({self.session_timeout_s})",
            self.heartbeat_interval_s,
        )
        # An empty one would be a name, too: one that all who were given it share.
        name = self.group_instance_id
        check(name is None or _is_name(name), "kafka.group_instance_id", NAME_RULE, name)
        # What is given and not used would be a connection in plain text that looks secured.
        uses_sasl, protocol = self.security_protocol.startswith("SASL"), self.security_protocol
        for name in ("username", "password_file"):
            value = getattr(self, name)
            rule = (
                "given for SASL"
                if uses_sasl
                else _needs_protocol("SASL_PLAINTEXT or SASL_SSL", protocol)
            )
            check((value is not None) == uses_sasl, f"kafka.{name}", rule, value)
        for name in ("ssl_ca_file", "ssl_cert_file", "ssl_key_file"):
            value = getattr(self, name)
            is_used = value is None or protocol.endswith("SSL")
            check(is_used, f"kafka.{name}", _needs_protocol("SSL or SASL_SSL", protocol), value)
        check(
            (self.ssl_cert_file is None) == (self.ssl_key_file is None),
            "kafka.ssl_cert_file and kafka.ssl_key_file",
            "given both or neither",
            self.ssl_cert_file or self.ssl_key_file,
        )


def _needs_protocol(needed: str, given: str) -> str:
    return f"given only with kafka.security_protocol {needed} (it is {given})"


def _is_name(text: str) -> bool:
    """Tell whether Kafka takes it for the name of a topic or of a group's member."""
    return bool(re.fullmatch(r"[a-zA-Z0-9._-]{1,249}", text)) and text not in {".", ".."}


def _names_server(text: str) -> bool:
    found = re.fullmatch(r"\s*\S+:([0-9]{1,5})\s*", text)
    return found is not None and int(found[1]) <= 65535


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
    """What holds of users: what is forgotten of them, and items that are blocked for them."""

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
            check(_is_name(name), f"topics.{kind}", NAME_RULE, name)
        for kind, name in names.items():
            same = next(other for other in kinds if names[other] == name)
            check(same == kind, f"topics.{kind}", f"another topic than topics.{same}", name)
        check_positive("topics", {"partitions": self.partitions}, most=INT32_MAX)
        replicas = self.replication_factor
        check(1 <= replicas <= 32767, "topics.replication_factor", "1 to 32767", replicas)


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
        for name in ("user_id", "item_id"):
            path = getattr(self, name)
            check(path != "None", f"fields.{name}", "a path: no event is without it", path)
        names = ("user_id", "item_id", "timestamp", "event_type", "event_id")
        paths = {name: getattr(self, name) for name in names if getattr(self, name) is not None}
        for name, path in paths.items():
            check(all(path.split(".")), f"fields.{name}", "names joined by single dots", path)
            plain = not re.search(r'["\\\x00-\x1f\ud800-\udfff]', path)
            rule = "free of quotes, backslashes and control characters"
            check(plain, f"fields.{name}", rule, path)
            for other, longer in paths.items():
                rule = f"no part of the path of fields.{other} ({longer})"
                check(not longer.startswith(path + "."), f"fields.{name}", rule, path)
        types = self.accepted_event_types
        check(all(types), "fields.accepted_event_types", "without empty names", types)
        check(
            not types or self.event_type is not None,
            "fields.event_type",
            "a path, since fields.accepted_event_types is set",
            self.event_type,
        )
        check_positive("fields", {"max_id_bytes": self.max_id_bytes})
        future = self.max_future_s
        finite = math.isfinite(future) and future >= 0
        check(finite, "fields.max_future_s", "finite and at least 0", future)
