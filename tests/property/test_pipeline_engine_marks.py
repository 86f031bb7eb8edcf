"""What a store notes about its rows, and from where on a partition is read that they lack."""

from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.topics import NO_ID
from pipeline.engine.marks import Mark, names, where_to_go_on

LOGS = st.builds(
    b"%b %d".__mod__, st.tuples(st.uuids().map(lambda u: str(u).encode()), st.integers(0, 2**63))
)
OFFSETS = st.integers(0, 2**63 - 1)


@given(st.none() | LOGS, st.none() | OFFSETS)
def test_a_mark_is_read_as_it_was_written(log: bytes | None, reflects: int | None) -> None:
    """And one of a version that noted the changelog alone."""
    mark = Mark(log, reflects)

    assert Mark.decode(mark.encode()) == mark
    assert Mark.decode(log) == Mark(log, None)


@given(LOGS, LOGS)
def test_a_commit_names_its_own_changelog_alone_or_none(log: bytes, other: bytes) -> None:
    """One of a cluster without ids of topics names none."""
    assert names(log, log)
    assert names(other, log) == (other == log)
    assert names(b"", log)
    assert names(NO_ID.encode() + b" 7", log)


@given(st.data())
def test_reading_goes_on_where_the_rows_end_or_not_at_all(data: st.DataObject) -> None:
    """No event is left out, none that is there is called gone, and nothing known is read again."""
    end = data.draw(st.integers(0, 30))
    committed = data.draw(st.integers(0, end))
    beginning = data.draw(st.integers(0, committed))
    reflects = data.draw(st.none() | st.integers(0, end))

    start = where_to_go_on(committed, reflects, beginning)

    in_rows = set(range(reflects or 0))
    lacking = set(range(committed)) - in_rows
    if start is None:
        assert min(lacking) < beginning
    else:
        assert lacking <= set(range(start, end))
        assert start <= committed
        assert start == committed or start in lacking
        assert not lacking or min(lacking) >= beginning
