"""The changelog as `lrurec verify` reads it: each user's newest row."""

from collections.abc import Collection, Iterable
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from pipeline.cluster.records import Record
from pipeline.verification.oracle import UserOf
from state.errors import StateFormatUnknown
from state.row import RowLayout, layout_of

NO_LAYOUT = RowLayout(ring=1, recommended=0, blocks=1, channels=1)


@dataclass(slots=True)
class Row:
    """One user's newest row.

    Attributes:
        layout: The sizes it was written under.
        head: All that it says but the hidden state.
        hidden: complex64 (blocks, channels).
        damaged: Its bytes are not those that were written.
        reborn: The user was deleted before: the row knows only what came after.
        gone: Events that it counts and the log does not hold any more; negative: events from before
            its user was deleted or forgotten. None until it was worked out, or where it cannot be.
    """

    layout: RowLayout
    head: np.void
    hidden: npt.NDArray[np.complex64]
    damaged: bool
    reborn: bool
    gone: int | None = None

    @property
    def offset(self) -> int:
        """Offset of the last event that it reflects."""
        return int(self.head["offset"])

    @property
    def weights_id(self) -> int:
        """The weights that made its hidden state; 0: none."""
        return int(self.head["weights_id"])

    @property
    def started_at(self) -> int:
        """How many events the user had when the hidden state began."""
        return int(self.head["started_at"])


@dataclass(slots=True)
class Rows:
    """The changelog.

    Attributes:
        newest: Each user's newest row.
        deleted: Users whose row was deleted, last of all.
        layouts: Every layout that a row in the topic was written under.
    """

    newest: dict[UserOf, Row]
    deleted: set[UserOf]
    layouts: set[RowLayout]

    def forgotten_of(self, keys: Collection[bytes]) -> dict[bytes, int]:
        """Return up to what time rows say that their users are forgotten, of those that have any.

        Args:
            keys: The users asked for.
        """
        found: dict[bytes, int] = {}
        for (_, key), row in self.newest.items():
            if key in keys:
                found[key] = max(found.get(key, 0), int(row.head["forgotten_before_ms"]))
        return found

    def reached(self, partition: int, committed: int) -> int:
        """Return up to where a partition was answered for: rows may be ahead of its commit."""
        ahead = (
            row.offset + 1
            for user, row in self.newest.items()
            if user[0] == partition and not row.damaged
        )
        return max(committed, max(ahead, default=0))


def read_rows(changelog: Iterable[Record]) -> Rows:
    """Take the newest row of every user.

    Raises:
        state.errors.StateFormatUnknown: A row is of another format version.
    """
    newest: dict[UserOf, bytes] = {}
    deleted: set[UserOf] = set()
    deleted_before: set[UserOf] = set()
    layouts: dict[bytes, RowLayout] = {}
    for record in changelog:
        user = record.partition, record.key or b""
        if record.value is None:
            newest.pop(user, None)
            deleted.add(user)
            deleted_before.add(user)
            continue
        newest[user] = record.value
        deleted.discard(user)
        sizes = record.value[:8] + record.value[16:32]
        if sizes not in layouts and (layout := layout_of(record.value)) is not None:
            layouts[sizes] = layout
    by_layout: dict[RowLayout, list[UserOf]] = {}
    for user, value in newest.items():
        by_layout.setdefault(layout_of(value) or NO_LAYOUT, []).append(user)
    rows: dict[UserOf, Row] = {}
    for layout, users in by_layout.items():
        try:
            decoded = layout.decode([newest[user] for user in users])
        except StateFormatUnknown as error:
            partition, _ = users[error.row or 0]
            raise error.at(partition, [key for _, key in users]) from error
        for i, user in enumerate(users):
            rows[user] = Row(
                layout=layout,
                head=decoded.heads[i],
                hidden=decoded.hidden[i],
                damaged=bool(decoded.damaged[i]),
                reborn=user in deleted_before,
            )
    return Rows(rows, deleted, set(layouts.values()))
