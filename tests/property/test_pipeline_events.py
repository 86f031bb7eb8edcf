"""Laws of the event decoder: total, deterministic from the record, true to its mapping."""

import json
from typing import Any

from hypothesis import assume, example, given
from hypothesis import strategies as st

from pipeline.errors import EventInvalid
from pipeline.events import MAX_TIMESTAMP_MS, MIN_AUTO_MS, Event, EventDecoder
from pipeline.settings import FieldSettings

names = st.text(
    st.characters(exclude_categories=["Cc", "Cs"], exclude_characters='."\\'),
    min_size=1,
    max_size=5,
)
paths = st.lists(names, min_size=1, max_size=4).map(".".join)
times_ms = st.integers(MIN_AUTO_MS, MAX_TIMESTAMP_MS - 1)
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=40)
ids = st.one_of(texts, st.integers(-(2**70), 2**70))

scalars = st.one_of(
    st.none(),
    st.booleans(),
    st.integers(),
    st.integers(-(10**400), 10**400),
    st.floats(),
    st.text(st.characters(), max_size=300),
    st.datetimes().map(str),
    times_ms,
)
values = st.recursive(
    scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(names, inner, max_size=3)
)
mapped = st.sampled_from(["user_id", "item_id", "timestamp_ms", "event_id", "event_type", "a"])
records = st.one_of(
    st.binary(max_size=200),
    values.map(json.dumps).map(str.encode),
    st.dictionaries(mapped, values).map(json.dumps).map(str.encode),
    # Almost events: every field there, some odd, the text cut or a byte changed.
    st.builds(
        lambda click, cut, at, byte: (lambda value: value[:at] + byte + value[at + cut :])(
            json.dumps(click, ensure_ascii=False).encode(errors="surrogatepass")
        ),
        st.fixed_dictionaries(
            {"user_id": ids | scalars, "item_id": ids | scalars, "timestamp_ms": scalars},
            optional={"event_id": scalars, "event_type": scalars},
        ),
        st.integers(0, 2),
        st.integers(0, 150),
        st.binary(max_size=2),
    ),
)
settings = st.sampled_from(
    [
        FieldSettings(),
        FieldSettings(timestamp_unit="iso", accepted_event_types=("view",)),
        FieldSettings(timestamp_unit="us", user_id="a.b", max_id_bytes=3),
        FieldSettings(timestamp_unit="s", item_id="a.c", event_id=None, max_future_s=0.0),
        FieldSettings(timestamp_unit="ms", timestamp=None, event_type="a.d"),
    ]
)


def outcome(fields: FieldSettings, value: bytes | None, record_ms: int) -> object:
    """Return the event, None, or the reason and message of the refusal."""
    try:
        return EventDecoder(fields).decode(value, record_ms)
    except EventInvalid as refused:
        return refused.reason, str(refused)


@given(fields=settings, value=st.none() | records, record_ms=st.integers(-1, 2**62))
@example(fields=FieldSettings(), value=b'{"user_id":' * 5000, record_ms=0)
@example(fields=FieldSettings(), value=b'{"user_id": "\\ud83d\\ude00\\ud83d"}', record_ms=0)
def test_any_bytes_have_one_lawful_outcome(
    fields: FieldSettings, value: bytes | None, record_ms: int
) -> None:
    """An event within the rules, a skip, or a refusal; the same every time; nothing else raised."""
    result = outcome(fields, value, record_ms)

    assert outcome(fields, value, record_ms) == result
    if isinstance(result, Event):
        assert 0 < len(result.user_key) <= fields.max_id_bytes
        assert 0 < len(result.item_id.encode()) <= fields.max_id_bytes
        assert result.user_key.decode()
        assert 0 <= result.timestamp_ms < MAX_TIMESTAMP_MS
        assert record_ms < 0 or result.timestamp_ms <= record_ms + fields.max_future_s * 1000
        assert result.event_id is None or 0 < len(result.event_id.encode()) <= fields.max_id_bytes
    elif result is None:
        assert fields.accepted_event_types
    else:
        assert isinstance(result, tuple)


@given(
    user=ids,
    item=ids,
    timestamp_ms=times_ms,
    event_id=st.none() | ids,
    more=st.dictionaries(names, values),
    ascii_only=st.booleans(),
)
def test_what_was_written_is_read(
    user: str | int,
    item: str | int,
    timestamp_ms: int,
    event_id: str | int | None,
    more: dict[str, Any],
    ascii_only: bool,
) -> None:
    """A valid message round-trips, whatever else it holds and however its text is escaped."""
    click = more | {"user_id": user, "item_id": item, "timestamp_ms": timestamp_ms}
    if event_id is not None:
        click["event_id"] = event_id
    else:
        click.pop("event_id", None)
    try:
        value = json.dumps(click, ensure_ascii=ascii_only, allow_nan=False).encode()
    except ValueError:  # NaN in JSON, or a lone surrogate in UTF-8: no valid message
        assume(False)

    event = EventDecoder(FieldSettings()).decode(value, timestamp_ms)

    expected_id = None if event_id is None else str(event_id)
    assert event == Event(str(user).encode(), str(item), timestamp_ms, expected_id)


@given(
    places=st.lists(paths, min_size=5, max_size=5, unique=True),
    user=ids,
    item=ids,
    timestamp_ms=times_ms,
    event_id=ids,
    event_type=texts,
)
def test_a_mapping_reads_what_stands_at_its_paths(
    places: list[str], user: str, item: str, timestamp_ms: int, event_id: str, event_type: str
) -> None:
    """Each fact comes from its own dotted path, at any depth and under any name."""
    assume(not any(b.startswith(a + ".") for a in places for b in places))
    click: dict[str, Any] = {}
    for path, fact in zip(places, [user, item, timestamp_ms, event_id, event_type], strict=True):
        *folders, name = path.split(".")
        here = click
        for folder in folders:
            here = here.setdefault(folder, {})
        here[name] = fact
    fields = FieldSettings(
        user_id=places[0],
        item_id=places[1],
        timestamp=places[2],
        event_id=places[3],
        event_type=places[4],
        accepted_event_types=(event_type,),
    )

    event = EventDecoder(fields).decode(json.dumps(click).encode(), timestamp_ms)

    assert event == Event(str(user).encode(), str(item), timestamp_ms, str(event_id))
