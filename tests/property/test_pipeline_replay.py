"""What replay writes, a worker reads back: the same event under every mapping of fields."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.events import EventDecoder
from pipeline.files.rows import Interaction
from pipeline.replay import EventWriter
from pipeline.settings import FieldSettings

# A surrogate cannot be in a file that was read as UTF-8.
texts = st.text(st.characters(exclude_categories=["Cs"]), min_size=1, max_size=12)
names = st.text(st.characters(exclude_categories=["C"], exclude_characters='."\\'), max_size=4)
# From the first to the last moment that the decoder takes.
times_ms = st.integers(0, 4_102_444_799_999)

mappings = st.builds(
    lambda prefix, last, parts, unit: FieldSettings(
        user_id=".".join([*prefix, last[0]]),
        item_id=".".join([*parts, last[1]]),
        timestamp=".".join([*prefix, last[2]]),
        event_type=".".join([*parts, last[3]]),
        event_id=None,
        accepted_event_types=(),
        timestamp_unit=unit,
    ),
    prefix=st.lists(names.map("p".__add__), max_size=2),
    last=st.lists(names.map("x".__add__), min_size=4, max_size=4, unique=True),
    parts=st.lists(names.map("q".__add__), max_size=2),
    unit=st.sampled_from(["auto", "s", "ms", "us", "iso"]),
)


@given(
    fields=mappings,
    user=texts,
    item=texts,
    timestamp_ms=times_ms,
    event_type=st.none() | texts,
)
def test_an_event_written_by_replay_is_read_back_as_it_was(
    fields: FieldSettings, user: str, item: str, timestamp_ms: int, event_type: str | None
) -> None:
    """User, item and time survive, wherever the mapping puts them and in whatever unit."""
    row = Interaction(user, item, timestamp_ms, event_type)

    event = EventDecoder(fields).decode(EventWriter(fields).write(row), 4_102_444_800_000)

    assert event is not None
    assert event.user_key == user.encode()
    assert event.item_id == item
    assert event.timestamp_ms == timestamp_ms


@given(event_type=texts.filter(lambda text: "," not in text and text.strip() == text))
def test_the_kind_of_an_event_is_written_where_it_is_looked_for(event_type: str) -> None:
    """A row whose kind is accepted counts; one of another kind, or of none, does not."""
    fields = FieldSettings(accepted_event_types=(event_type,))
    writer, decoder = EventWriter(fields), EventDecoder(fields)

    def counts(kind: str | None) -> bool:
        row = Interaction("u", "i", 1_700_000_000_000, kind)
        return decoder.decode(writer.write(row), 1_700_000_000_000) is not None

    assert counts(event_type)
    assert not counts(event_type + "x")
    assert not counts(None)
