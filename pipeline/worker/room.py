"""Whether the rows of a release fit: one into a record of the changelog, all into memory."""

from contextlib import suppress
from pathlib import Path

import psutil

from models.release import Release
from pipeline.errors import SwapRejected
from state.row import RowLayout

MAX_ROW_BYTES = 880_000
"""Longest row: with its key it is to leave in a batch of `pipeline.engine.sending`."""
ROOM_SHARE = 0.5
"""Of the memory, for rows in use. While a worker goes over to a release, rows of before lie beside
them, and it needs room for more than rows."""
_CGROUP_LIMITS = (
    Path("/sys/fs/cgroup/memory.max"),  # version 2; "max" where there is none
    Path("/sys/fs/cgroup/memory/memory.limit_in_bytes"),
)


def memory_bytes() -> int:
    """Return how much memory there is: the machine's, or its container's where that is less."""
    limits: list[int] = [psutil.virtual_memory().total]
    for path in _CGROUP_LIMITS:
        with suppress(OSError, ValueError):
            limits.append(int(path.read_text()))
    return min(limits)


def layout_of_release(
    release: Release, *, top_k: int, ring: int | None, hot_rows: int, is_hidden_here: bool
) -> RowLayout:
    """Return the layout of rows under a release.

    Args:
        release: The release.
        top_k: Items in a recommendation.
        ring: Items that a row remembers; None: the release's window.
        hot_rows: Rows that are to fit into memory together.
        is_hidden_here: Whether hidden states are in that memory, rather than on a GPU.

    Raises:
        SwapRejected: One of them is too long for the changelog, or there is no room for all.
    """
    config = release.config
    ring = ring or config.max_length
    name = f"release {release.version} at {release.path}"
    sizes = (
        f"{ring} items remembered (recommend.ring, else the release's max_length), {top_k} "
        f"recommended, {config.n_blocks} blocks of {config.state_size} channels"
    )
    try:
        layout = RowLayout(
            ring=ring, recommended=top_k, blocks=config.n_blocks, channels=config.state_size
        )
    except ValueError as error:
        msg = f"{name}: expected rows that the changelog takes, got {error}"
        raise SwapRejected(msg) from error
    if layout.row_bytes > MAX_ROW_BYTES:
        msg = (
            f"{name}: expected rows of at most {MAX_ROW_BYTES} bytes, which the changelog takes, "
            f"got {layout.row_bytes}: {sizes}"
        )
        raise SwapRejected(msg)
    row_bytes = layout.row_bytes if is_hidden_here else layout.head_dtype.itemsize
    room = int(ROOM_SHARE * memory_bytes())
    if hot_rows * row_bytes > room:
        msg = (
            f"{name}: expected {hot_rows} rows (worker.hot_rows) to take at most {room} bytes, "
            f"half of the memory, got {hot_rows * row_bytes}: {sizes}"
        )
        raise SwapRejected(msg)
    return layout
