"""A flood of commands about users, beside micro-batches that want the same thread."""

import time
from collections import Counter
from collections.abc import Mapping
from types import SimpleNamespace

from pipeline.worker.users import ERASE_AT_ONCE, ERASE_BUDGET_S, Users

LOOK_S = ERASE_BUDGET_S / 5


class SlowRows:
    """Rows of which every look for some takes its time; none is erased but in partition 3."""

    def __init__(self) -> None:
        self.looks: Counter[int] = Counter()

    def erase_users(self, partition: int, before_ms: Mapping[bytes, int]) -> int:
        self.looks[partition] += 1
        time.sleep(LOOK_S)
        return len(before_ms) if partition == 3 else 0


def test_a_flood_of_commands_is_worked_off_bit_by_bit() -> None:
    """Of each second a fraction, however many partitions there are, and all of them in the end."""
    users, rows, owned = Users(), SlowRows(), range(12)
    value = b'{"forget_before_ms":1735689600000}'
    for number in range(2 * ERASE_AT_ONCE):
        key = b"user-%d" % number
        users.hear(SimpleNamespace(key=key, value=value, timestamp=1))  # type: ignore[arg-type]
    users.take_up()

    erased, most = 0, 0
    for _ in range(2 * len(owned)):
        before = rows.looks.total()
        erased += users.erase_rows(rows, owned).get(3, 0)  # type: ignore[arg-type]
        most = max(most, rows.looks.total() - before)

    assert 0 < most <= ERASE_BUDGET_S / LOOK_S + 1
    assert rows.looks == dict.fromkeys(owned, 2)  # each part once, in every partition
    assert erased == 2 * ERASE_AT_ONCE
    assert users.erase_rows(rows, owned) == {}  # type: ignore[arg-type]
    users.leave(5)
    users.erase_rows(rows, owned)  # type: ignore[arg-type]
    assert rows.looks == dict.fromkeys(owned, 2) | {5: 4}  # it may have other rows by now
