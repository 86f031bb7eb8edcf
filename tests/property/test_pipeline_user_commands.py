"""Laws of the users topic: which of a user's records rules."""

from dataclasses import dataclass

from hypothesis import given
from hypothesis import strategies as st

from pipeline.user_commands import UserCommand, newest_commands


@dataclass(frozen=True, kw_only=True)
class UserRecord:
    """A record of the users topic; what it says is handed in beside it."""

    topic: str = "users"
    partition: int
    offset: int
    timestamp: int
    key: bytes
    value: None = None
    headers: tuple[()] = ()


RECORDS = st.tuples(
    st.sampled_from([b"anna", b"bert"]),
    st.integers(0, 3),  # its partition
    st.integers(-1, 3),  # its timestamp
    st.integers(0, 3),  # up to when the user is forgotten
)


@given(st.lists(RECORDS, max_size=20))
def test_the_newest_record_of_a_user_rules(drawn: list[tuple[bytes, int, int, int]]) -> None:
    """By its timestamp, whatever the partition; of equal ones the later in the reading."""
    commands = [
        (
            UserRecord(partition=partition, offset=number, timestamp=timestamp, key=key),
            UserCommand(forget_before_ms=before_ms, blocked_items=(number,)),
        )
        for number, (key, partition, timestamp, before_ms) in enumerate(drawn)
    ]
    expected = {
        key: max((at, number) for number, (other, _, at, _) in enumerate(drawn) if other == key)[1]
        for key, *_ in drawn
    }

    newest = newest_commands(commands)

    assert {key: record.offset for key, (record, _) in newest.items()} == expected
    assert {key: command.blocked_items for key, (_, command) in newest.items()} == {
        key: (number,) for key, number in expected.items()
    }
    # What one of them says is forgotten stays so.
    assert {key: command.forget_before_ms for key, (_, command) in newest.items()} == {
        key: max(before_ms for other, _, _, before_ms in drawn if other == key) for key in expected
    }
