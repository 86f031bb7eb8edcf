"""Interactions of a data file as columns, by time."""

from collections.abc import Callable, Iterator, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import NamedTuple, NoReturn

import numpy as np
from numpy.typing import NDArray

from pipeline.events import MAX_TIMESTAMP_MS, MIN_AUTO_MS
from pipeline.files.text import refuse

COLUMNS = ("user", "item", "timestamp")
EXPECTED_TIME = "a timestamp in seconds or milliseconds, 1970 to 2099"
BLOCK_ROWS = 4096  # handled at once: enough for speed, few enough for the processor's cache


class Interaction(NamedTuple):
    """One row of a data file."""

    user: str
    item: str
    timestamp_ms: int
    event_type: str | None


@dataclass(frozen=True, kw_only=True, eq=False)
class Interactions:
    """The rows of a data file as columns, by time; n rows.

    Attributes:
        user_ids: Every user once, in the file's order.
        item_ids: Every item once, in the file's order.
        event_types: Every kind of event once, "" for none; empty where the file tells no kinds.
        users: int32 (n,), indices into `user_ids`.
        items: int32 (n,), indices into `item_ids`.
        types: int32 (n,), indices into `event_types`; None where the file tells no kinds.
        timestamps_ms: int64 (n,), never falling.
    """

    user_ids: list[str]
    item_ids: list[str]
    event_types: list[str]
    users: NDArray[np.int32]
    items: NDArray[np.int32]
    types: NDArray[np.int32] | None
    timestamps_ms: NDArray[np.int64]

    def __len__(self) -> int:
        return len(self.users)

    def rows(self, start: int = 0, stop: int | None = None) -> Iterator[Interaction]:
        """Yield the rows from `start` up to `stop` (None: the end), oldest first."""
        stop = len(self) if stop is None else min(stop, len(self))
        for low in range(start, stop, BLOCK_ROWS):
            block = slice(low, min(low + BLOCK_ROWS, stop))
            types: list[str | None] = [None] * (block.stop - low)
            if self.types is not None:
                types = [self.event_types[index] or None for index in self.types[block].tolist()]
            yield from map(
                Interaction,
                [self.user_ids[index] for index in self.users[block].tolist()],
                [self.item_ids[index] for index in self.items[block].tolist()],
                self.timestamps_ms[block].tolist(),
                types,
            )


def milliseconds(
    path: Path,
    times: NDArray[np.float64],
    refuse_row: Callable[[int, float], NoReturn],
    scale: int | None = None,
) -> NDArray[np.int64]:
    """Return times that are all in seconds or all in milliseconds as milliseconds.

    Args:
        path: The file, for the message that it has no rows.
        times: (n,)
        refuse_row: Told the first row out of range, and the limit in the file's unit; raises.
        scale: Milliseconds of the file's unit; None: to be found out from the largest time.
    """
    if not len(times):
        refuse(path, None, "at least one row", "none")
    if scale is None:
        scale = 1000 if times.max() < MIN_AUTO_MS else 1
    limit = MAX_TIMESTAMP_MS / scale
    legal = (times >= 0) & (times < limit)
    if not legal.all():
        refuse_row(int(np.argmin(legal)), limit)
    return np.rint(times * scale).astype(np.int64)


def in_order_of_time(rows: Interactions) -> Interactions:
    """Return the rows by time; equal times keep their order."""
    order = np.argsort(rows.timestamps_ms, kind="stable")
    return replace(
        rows,
        users=rows.users[order],
        items=rows.items[order],
        types=None if rows.types is None else rows.types[order],
        timestamps_ms=rows.timestamps_ms[order],
    )


def event_type_name(header: Sequence[str]) -> str | None:
    """Return the column of the kinds of events; None where a file tells none."""
    return next((name for name in ("event_type", "event") if name in header), None)
