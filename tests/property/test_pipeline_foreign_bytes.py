"""Topics that users write, too: whatever bytes are in them, what reads them for people goes on."""

from collections.abc import Callable

import pytest
from hypothesis import example, given
from hypothesis import strategies as st

from pipeline import watch
from pipeline.cluster.records import Record
from pipeline.demo.users import UserCards
from pipeline.verification.catalogue import read_catalogue
from tests.unit.test_pipeline_demo_users import Made, made

VALID = (made("u", 9, ["i1", "i2"]).value or b"", b'{"title": "a lamp", "available": true}')
DEEP = b'{"more":' + b"[" * 2000 + b"]" * 2000 + b"}"


@st.composite
def damaged(draw: st.DrawFn) -> bytes:
    """A record as it should be, with a piece of it replaced by any bytes."""
    value = draw(st.sampled_from(VALID))
    start, stop = sorted(draw(st.tuples(*[st.integers(0, len(value))] * 2)))
    return value[:start] + draw(st.binary(max_size=8)) + value[stop:]


@pytest.mark.parametrize(
    "read",
    [
        watch._decode,
        lambda record: watch._title(record.value),
        lambda record: UserCards(lambda _: ["i1"] * 9, lambda: 1000.0).take(record),
        lambda record: read_catalogue([record]),
    ],
    ids=["recommendation", "title", "card", "catalogue"],
)
@given(value=st.one_of(st.binary(), damaged()))
@example(value=b'{"title":"caf\xe9","user_id":"caf\xe9"}')
@example(value=DEEP)
def test_no_bytes_end_what_reads_them(read: Callable[[Record], object], value: bytes) -> None:
    """Text that is no UTF-8 and deep nesting are errors of their own kinds in msgspec."""
    read(Made(b"u", value))
