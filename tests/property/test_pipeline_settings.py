"""Whatever a setting is given is taken and usable, or refused in one line."""

import socket
import threading
from contextlib import suppress
from dataclasses import fields
from typing import Any, get_args, get_type_hints

import hypothesis
import pytest
from aiokafka.protocol.types import Int32
from hypothesis import given
from hypothesis import strategies as st

from pipeline.errors import SettingsInvalid
from pipeline.settings import KafkaSettings, LogSettings, Settings, WorkerSettings

EDGES = [2**power + by for power in (0, 31, 32, 63, 64, 1100) for by in (-1, 0)]
VALUES = {
    int: st.one_of(st.integers(), st.sampled_from(EDGES)),
    float: st.one_of(st.floats(), st.sampled_from([1e6, 1e10])),
    str: st.text(),
}


@st.composite
def settings_given(draw: st.DrawFn) -> tuple[type, dict[str, Any]]:
    """A section, and one of its fields with any value of the field's type."""
    kinds = [type(getattr(Settings(), one.name)) for one in fields(Settings)]
    kind = draw(st.sampled_from([kind for kind in kinds if kind is not LogSettings]))
    hints = {name: {hint, *get_args(hint)} for name, hint in get_type_hints(kind).items()}
    plain = {name: [VALUES[one] for one in VALUES if one in hints[name]] for name in hints}
    name = draw(st.sampled_from([name for name, values in plain.items() if values]))
    return kind, {name: draw(st.one_of(plain[name]))}


@given(given=settings_given())
@hypothesis.settings(max_examples=500)
def test_whatever_a_setting_is_given_is_taken_or_refused(
    given: tuple[type, dict[str, Any]],
) -> None:
    """No value makes another error than the one that is told in a line."""
    section, field_value = given

    with suppress(SettingsInvalid, ValueError):  # the latter: those of models and state
        section(**field_value)


DURATIONS = st.one_of(st.floats(min_value=1e-3, max_value=1e12), st.sampled_from([1e6, 1e10]))
SIZES = st.one_of(st.integers(1, 2**70), st.sampled_from([2**31 - 1, 2**31, 2**32]))


@given(session_s=DURATIONS, rebalance_s=DURATIONS, wait_ms=SIZES, least=SIZES, most=SIZES)
def test_what_kafka_is_told_can_be_written_in_its_protocol(
    session_s: float, rebalance_s: float, wait_ms: int, least: int, most: int
) -> None:
    """Sizes and times that are taken fit into its 32 bits, the times in milliseconds."""
    try:
        kafka = KafkaSettings(
            session_timeout_s=session_s,
            heartbeat_interval_s=session_s / 3,
            rebalance_timeout_s=rebalance_s,
            fetch_max_wait_ms=wait_ms,
            fetch_min_bytes=least,
            max_fetch_bytes=most,
        )
    except SettingsInvalid:
        assert max(session_s, rebalance_s) > 1e6 or max(wait_ms, least, most) >= 2**31
        return
    Int32.encode(int(2000 * kafka.session_timeout_s))  # a request may take two sessions
    Int32.encode(int(1000 * kafka.rebalance_timeout_s))
    for number in (kafka.fetch_max_wait_ms, kafka.fetch_min_bytes, kafka.max_fetch_bytes):
        Int32.encode(number)


@given(duration_s=DURATIONS)
@pytest.mark.parametrize(
    ("section", "name"),
    [
        (KafkaSettings, "connect_timeout_s"),
        (WorkerSettings, "checkpoint_interval_s"),
        (WorkerSettings, "drain_timeout_s"),
        (WorkerSettings, "restore_deadline_s"),
        (WorkerSettings, "stop_deadline_s"),
        (WorkerSettings, "watchdog_s"),
    ],
)
def test_a_time_that_is_taken_can_be_waited_for(
    section: type, name: str, duration_s: float
) -> None:
    """Threads and sockets have longest times; one beyond them would end the wait with an error."""
    try:
        section(**{name: duration_s})
    except SettingsInvalid:
        assert duration_s > 1e6
        return
    assert threading.Lock().acquire(timeout=2 * duration_s)  # two such times may be added
    with socket.socket() as one:
        one.settimeout(2 * duration_s)
        with suppress(ConnectionRefusedError):
            one.connect(("127.0.0.1", 1))
