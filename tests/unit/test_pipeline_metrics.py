import socket
import struct
import threading
import urllib.error
import urllib.request
from collections.abc import Callable, Iterator
from contextlib import ExitStack, suppress

import numpy as np
import pytest
from prometheus_client import CollectorRegistry, generate_latest

from pipeline import metrics_server
from pipeline.errors import DeadReason, PortTaken, SettingsInvalid
from pipeline.metrics import EVENT_RESULTS, Metrics, TrainerMetrics
from pipeline.metrics_server import MOST_CLIENTS, serve
from state.store import StoreStats
from tests.kafka import wait_until


@pytest.fixture
def registry() -> CollectorRegistry:
    """A registry of this test alone."""
    return CollectorRegistry()


def free_port() -> int:
    with socket.socket() as probe:
        probe.bind(("127.0.0.1", 0))
        return int(probe.getsockname()[1])


def test_every_label_value_is_there_from_the_start(registry: CollectorRegistry) -> None:
    """What never happened reads 0, so that a rate over it works from the first time on."""
    Metrics(registry)

    for reason in DeadReason:
        assert registry.get_sample_value("lrurec_dead_events_total", {"reason": reason}) == 0
    for name, label, values in [
        ("events_total", "result", ["applied", "unknown_item", "duplicate", "skipped", "dead"]),
        ("stage_seconds_count", "stage", ["decode", "load", "rank", "encode"]),
        ("recommendations_total", "source", ["model", "cold_start", "fallback"]),
        ("model_swaps_total", "result", ["loaded", "rejected"]),
        ("hot_row_reads_total", "result", ["hit", "miss"]),
        ("prequential_hits_total", "method", ["model", "popularity", "repeat_last"]),
    ]:
        for value in values:
            assert registry.get_sample_value(f"lrurec_{name}", {label: value}) == 0


@pytest.mark.parametrize("kind", [Metrics, TrainerMetrics])
def test_names_follow_the_practice(
    registry: CollectorRegistry, kind: Callable[[CollectorRegistry], object]
) -> None:
    """One prefix, a help text each, base units, and no metric that names another's suffix."""
    kind(registry)

    for metric in registry.collect():
        assert metric.name.startswith("lrurec_")
        assert metric.documentation
        assert not metric.name.endswith(("_ms", "_count", "_sum", "_bucket"))
        if metric.type == "gauge":
            assert not metric.name.endswith("_total")


def test_two_processes_kinds_may_share_a_machine_but_not_a_registry() -> None:
    """Metrics are no module globals: each registry has its own, and only one set of them."""
    first, second = CollectorRegistry(), CollectorRegistry()

    Metrics(first).late_events.inc()
    Metrics(second)

    assert first.get_sample_value("lrurec_late_events_total") == 1
    assert second.get_sample_value("lrurec_late_events_total") == 0
    with pytest.raises(ValueError, match="Duplicated timeseries"):
        Metrics(first)


def test_results_of_events_sum_to_the_records(registry: CollectorRegistry) -> None:
    """Each record counts under one result; unknown items are told from the applied ones."""
    dead = {DeadReason.NOT_JSON: 2, DeadReason.BAD_USER: 1}

    Metrics(registry).count_events(
        applied=10, duplicate=4, skipped=5, forgotten=6, unknown_item=3, dead=dead
    )

    def value(result: str) -> float | None:
        return registry.get_sample_value("lrurec_events_total", {"result": result})

    assert {result: value(result) for result in ("applied", "unknown_item", "dead")} == {
        "applied": 7,
        "unknown_item": 3,
        "dead": 3,
    }
    records = sum(value(result) or 0 for result in EVENT_RESULTS)
    assert records == registry.get_sample_value("lrurec_batch_events_sum") == 28
    assert registry.get_sample_value("lrurec_dead_events_total", {"reason": "not_json"}) == 2


def test_many_values_are_observed_at_once(registry: CollectorRegistry) -> None:
    """Buckets hold what is at or under their bound; a negative delay counts as none."""
    histogram = Metrics(registry).event_to_recommendation

    histogram.observe_many(np.array([-3.0, 0.001, 0.0011, 10.0, 11.0]))
    histogram.observe_many(np.array([0.02]))
    histogram.observe_many(np.empty(0))

    def bucket(bound: str) -> float | None:
        name = "lrurec_event_to_recommendation_seconds_bucket"
        return registry.get_sample_value(name, {"le": bound})

    assert [bucket(le) for le in ("0.001", "0.002", "0.015", "0.02", "10.0", "+Inf")] == [
        2,
        3,
        3,
        4,
        5,
        6,
    ]
    total = registry.get_sample_value("lrurec_event_to_recommendation_seconds_sum")
    assert total == pytest.approx(21.0221)
    assert registry.get_sample_value("lrurec_event_to_recommendation_seconds_count") == 6


def test_observations_from_several_threads_are_all_counted(registry: CollectorRegistry) -> None:
    """No observation is lost to another thread's."""
    histogram = Metrics(registry).event_to_recommendation
    values = np.full(10, 0.5)
    threads = [
        threading.Thread(target=lambda: [histogram.observe_many(values) for _ in range(500)])
        for _ in range(4)
    ]

    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()

    assert registry.get_sample_value("lrurec_event_to_recommendation_seconds_count") == 20_000
    assert registry.get_sample_value("lrurec_event_to_recommendation_seconds_sum") == 10_000


def test_lag_is_shown_for_owned_partitions_only(registry: CollectorRegistry) -> None:
    """A partition that moved away leaves no series that stands still."""
    metrics = Metrics(registry)

    metrics.set_lag({0: 5, 3: 7})
    metrics.set_lag({3: 6, 4: 0})

    def lag(partition: str) -> float | None:
        return registry.get_sample_value("lrurec_consumer_lag_events", {"partition": partition})

    assert [lag(partition) for partition in ("0", "3", "4")] == [None, 6, 0]


def test_restores_and_standbys_are_shown_while_they_last(registry: CollectorRegistry) -> None:
    """Each has its own series; those of a partition that is done or gone end."""
    metrics = Metrics(registry)

    metrics.set_restoring({0: 500, 1: 30}, {2: 4})
    metrics.set_restoring({1: 10}, {})
    metrics.count_restored(False, 7)
    metrics.count_restored(True, 5)

    def value(name: str, **labels: str) -> float | None:
        return registry.get_sample_value(f"lrurec_{name}", labels)

    assert value("restoring_partitions") == 1
    assert [value("restore_left_rows", partition=number) for number in "01"] == [None, 10]
    assert value("standby_partitions") == 0
    assert value("standby_lag_rows", partition="2") is None
    assert value("restore_rows_total") == 7
    assert value("standby_rows_total") == 5


def test_a_stores_own_counts_are_shown(registry: CollectorRegistry) -> None:
    """They are read when the metrics are."""
    stats = StoreStats()
    Metrics(registry).watch_store(stats)

    stats.count_written([(b"key", b"row"), (b"other", None)])

    assert registry.get_sample_value("lrurec_store_rows_written_total") == 1
    assert registry.get_sample_value("lrurec_store_written_bytes_total") == 11


def test_counters_of_one_batch(registry: CollectorRegistry) -> None:
    """Stages, recommendations, hot rows and checkpoints reach their series."""
    metrics = Metrics(registry)

    metrics.observe_stages(("decode", "rank"), np.array([0.25, 0.5]))
    metrics.count_recommendations({"model": 3, "fallback": 1}, short=1)
    metrics.count_hot_rows(hits=4, misses=2, held=9)
    metrics.count_checkpoint(rows=7, seconds=0.125)

    expected = {
        ("lrurec_stage_seconds_sum", ("stage", "rank")): 0.5,
        ("lrurec_recommendations_total", ("source", "model")): 3,
        ("lrurec_short_recommendations_total", None): 1,
        ("lrurec_hot_row_reads_total", ("result", "miss")): 2,
        ("lrurec_hot_rows", None): 9,
        ("lrurec_checkpoint_rows_sum", None): 7,
        ("lrurec_checkpoint_seconds_sum", None): 0.125,
    }
    for (name, label), value in expected.items():
        assert registry.get_sample_value(name, dict([label] if label else [])) == value


ANSWERS = {
    "health": lambda: (True, "0.1 s without progress"),
    "ready": lambda: (False, "waiting for partitions"),
}


@pytest.fixture
def port(registry: CollectorRegistry) -> Iterator[int]:
    """The port of a server whose process is well but not ready."""
    port = free_port()
    with serve(registry, "127.0.0.1", port, **ANSWERS):
        yield port


def get(port: int, path: str) -> tuple[int, str]:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}{path}", timeout=10) as answer:
            return answer.status, answer.read().decode()
    except urllib.error.HTTPError as error:
        with error:
            return error.code, error.read().decode()


def test_metrics_and_health_are_answered(registry: CollectorRegistry, port: int) -> None:
    """/metrics is what the registry holds, health is 200 or 503 with a line, the rest is 404."""
    Metrics(registry).late_events.inc(3)

    status, text = get(port, "/metrics")

    assert status == 200
    assert text == generate_latest(registry).decode()
    assert "lrurec_late_events_total 3.0" in text
    assert "_created" not in text
    assert get(port, "/healthz") == (200, "0.1 s without progress\n")
    assert get(port, "/readyz") == (503, "waiting for partitions\n")
    assert get(port, "/")[0] == 404


def test_a_client_that_says_nothing_holds_nobody_up(port: int) -> None:
    """An open connection without a request does not keep a scrape from its answer."""
    with socket.create_connection(("127.0.0.1", port)):
        assert get(port, "/healthz")[0] == 200


def answers(thread: threading.Thread) -> bool:
    """Whether it is of the server and answers a request."""
    return "process_request_thread" in thread.name


@pytest.mark.parametrize("does", ["says nothing", "is reset"])
def test_a_client_without_a_request_leaves_no_word(
    port: int,
    monkeypatch: pytest.MonkeyPatch,
    capfd: pytest.CaptureFixture[str],
    caplog: pytest.LogCaptureFixture,
    does: str,
) -> None:
    """As load balancers and port scans do; a traceback each would fill the log."""
    monkeypatch.setattr(metrics_server._Handler, "timeout", 0.2)
    with socket.create_connection(("127.0.0.1", port)) as client:
        if does == "is reset":
            client.send(b"GET /metr")
            client.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
        else:
            assert client.recv(1) == b""  # its time is over

    assert get(port, "/healthz")[0] == 200  # it is taken after the other one
    wait_until(lambda: not any(map(answers, threading.enumerate())), "the end of both", 10)
    assert (capfd.readouterr().err, caplog.text) == ("", "")


def test_clients_that_never_finish_are_closed_for_those_that_come(
    port: int, capfd: pytest.CaptureFixture[str], caplog: pytest.LogCaptureFixture
) -> None:
    """However many there are, threads are few, and a health check is answered."""
    with ExitStack() as stack:
        clients = [
            stack.enter_context(socket.create_connection(("127.0.0.1", port)))
            for _ in range(3 * MOST_CLIENTS)
        ]
        for client in clients:
            with suppress(OSError):  # it is closed already
                client.send(b"GET /metrics HTTP/1.1\r\nX:")

        assert get(port, "/healthz")[0] == 200
        wait_until(
            lambda: sum(map(answers, threading.enumerate())) <= MOST_CLIENTS, "few threads", 10
        )
    wait_until(lambda: not any(map(answers, threading.enumerate())), "the end of all", 10)
    assert (capfd.readouterr().err, caplog.text) == ("", "")


def test_a_taken_port_is_told_in_one_line(registry: CollectorRegistry) -> None:
    """The error names the setting, the address and the way out; afterwards the port is free."""
    port = free_port()
    line = f"metrics.port: .* 127.0.0.1:{port}; choose another"
    with serve(registry, "127.0.0.1", port, **ANSWERS), pytest.raises(PortTaken, match=line):
        serve(registry, "127.0.0.1", port, **ANSWERS).__enter__()

    with serve(registry, "127.0.0.1", port, **ANSWERS):
        assert get(port, "/healthz")[0] == 200


def test_an_address_of_another_machine_is_refused(registry: CollectorRegistry) -> None:
    """The error names the settings and the address."""
    with pytest.raises(SettingsInvalid, match=r"cannot listen on 192\.0\.2\.1:9108"):
        serve(registry, "192.0.2.1", 9108, **ANSWERS).__enter__()


def test_port_0_serves_nothing(registry: CollectorRegistry) -> None:
    """The setting that means off starts no server."""
    threads = threading.active_count()

    with serve(registry, "127.0.0.1", 0, **ANSWERS):
        assert threading.active_count() == threads
