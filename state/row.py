"""The state row of one user as bytes: the only module that knows its format.

A row is `prefix + head + hidden`, little endian, without gaps, and every field behind the prefix
starts at a multiple of eight bytes, so that a batch of rows is one aligned numpy view.

    prefix   magic 4 bytes | format version u4 | checksum u8 | ring u4 | recommended u4 |
             blocks u4 | channels u4; the checksum is xxh3_64 of every byte behind it
    head     `RowLayout.head_dtype`: all that is known of the user but the hidden state
    hidden   complex64 (blocks, channels)

In use, heads are one structured array and hidden states one tensor; `encode` puts them together
for the disk, `decode` takes them apart.

Format 1, which had no `forgotten_before_ms`, is read as rows of users who were never forgotten.

Items and event ids are 64-bit hashes, 0 for none. The ring holds a user's newest items: the i-th
event ever (from 0) lies in slot `i % ring`. Slots without an item are always the oldest ones.
"""

from collections.abc import Iterator, Sequence
from dataclasses import dataclass
from functools import cached_property

import numpy as np
import numpy.typing as npt
from xxhash import xxh3_64_intdigest

from state.errors import StateFormatUnknown

MAGIC = b"LRst"
FORMAT_VERSION = 2
EVENT_IDS = 8
"""How many of a user's last event ids a head has room for."""

Heads = npt.NDArray[np.void]
"""Structured array (n,) of one layout's `head_dtype`."""

_PREFIX_DTYPE = np.dtype(
    [
        ("start", "V8"),  # magic and format version
        ("checksum", "<u8"),
        ("sizes", "<u4", (4,)),  # ring, recommended, blocks, channels
    ]
)
_START = MAGIC + FORMAT_VERSION.to_bytes(4, "little")
_START_1 = MAGIC + (1).to_bytes(4, "little")
_LONGER_FROM = 96  # where a row has eight bytes that format 1 has not
_CHECKED_FROM = 16  # the first byte behind the checksum
_AT_ONCE = 64  # rows: small enough to stay in the cache, large enough to hide the cost of a call
_MAX_SIZE = 2**20  # of each dimension: far above any use, far below an overflow
_MAX_ROW_BYTES = 2**26  # but for the fixed fields: a changelog takes no record near it


@dataclass(frozen=True, kw_only=True)
class Decoded:
    """A batch of rows, taken apart; entry i of every array belongs to row i of the input."""

    heads: Heads
    """(n,) of the layout's `head_dtype`; a damaged row has the head of a new user."""
    hidden: npt.NDArray[np.complex64]
    """(n, blocks, channels); zero where the row is damaged or converted."""
    damaged: npt.NDArray[np.bool_]
    """(n,): the bytes are not those that were written."""
    converted: npt.NDArray[np.bool_]
    """(n,): written under another layout; the hidden state has to be rebuilt from the ring."""


@dataclass(frozen=True, kw_only=True)
class RowLayout:
    """The sizes that a row's bytes depend on, and the codec for rows of these sizes.

    Raises:
        ValueError: A size is out of its range.
    """

    ring: int
    """How many of the user's newest items a row keeps, at least 1."""
    recommended: int
    """How many of the last recommended items a row keeps, at least 0."""
    blocks: int
    """Blocks of the model, at least 1."""
    channels: int
    """Complex channels of each block's hidden state, at least 1."""

    def __post_init__(self) -> None:
        for name, least in (("ring", 1), ("recommended", 0), ("blocks", 1), ("channels", 1)):
            size = getattr(self, name)
            if not least <= size <= _MAX_SIZE:
                msg = f"RowLayout.{name} must be from {least} to {_MAX_SIZE}, got {size}"
                raise ValueError(msg)
        items, channels = self.ring + self.recommended, self.blocks * self.channels
        if 8 * (items + channels) > _MAX_ROW_BYTES:
            msg = f"RowLayout must be of rows of at most {_MAX_ROW_BYTES} bytes, got {self}"
            raise ValueError(msg)

    @cached_property
    def head_dtype(self) -> np.dtype[np.void]:
        """Fields of a head; `new_heads` gives the values of a user without history."""
        return np.dtype(
            [
                ("weights_id", "<i8"),  # the weights that made the hidden state; 0: none
                ("model_version", "<i8"),  # 0: none
                ("event_count", "<i8"),  # events ever applied
                ("started_at", "<i8"),  # the event_count at which the hidden state starts
                ("partition", "<i8"),  # of the last applied event; -1: none
                ("offset", "<i8"),  # of the last applied event; -1: none
                ("timestamp_ms", "<i8"),  # of the last applied event
                ("last_item", "<u8"),  # the item that moved the hidden state last; 0: none
                ("forgotten_before_ms", "<i8"),  # it holds no event from before; 0: never forgotten
                ("event_ids", "<u8", (EVENT_IDS,)),
                ("recommended", "<u8", (self.recommended,)),
                ("ring", "<u8", (self.ring,)),
            ]
        )

    @cached_property
    def row_dtype(self) -> np.dtype[np.void]:
        """One whole row: `prefix` (of which `start` is magic and version), `head`, `hidden`."""
        return np.dtype(
            [
                ("prefix", _PREFIX_DTYPE),
                ("head", self.head_dtype),
                ("hidden", "<c8", (self.blocks, self.channels)),
            ]
        )

    @cached_property
    def row_bytes(self) -> int:
        """Length of a row."""
        return self.row_dtype.itemsize

    def new_heads(self, n: int) -> Heads:
        """Return heads (n,) of users without history: all zero, partition and offset -1."""
        heads = np.zeros(n, self.head_dtype)
        heads["partition"] = -1
        heads["offset"] = -1
        return heads

    def encode(self, heads: Heads, hidden: npt.NDArray[np.complex64]) -> list[bytes]:
        """Return the rows of n users.

        Args:
            heads: (n,) of `head_dtype`.
            hidden: complex64 (n, blocks, channels).

        Raises:
            ValueError: A shape or dtype is not this layout's.
        """
        shape = (len(heads), self.blocks, self.channels)
        if heads.dtype != self.head_dtype or hidden.shape != shape or hidden.dtype != np.complex64:
            msg = (
                f"cannot encode for {self}: expected heads of its head_dtype and hidden of "
                f"complex64 {shape}, got {heads.dtype} and {hidden.dtype} {hidden.shape}"
            )
            raise ValueError(msg)
        rows: list[bytes] = []
        table = np.empty(min(len(heads), _AT_ONCE), self.row_dtype)
        table["prefix"]["start"] = np.void(_START)
        table["prefix"]["sizes"] = self._sizes
        for at in range(0, len(heads), _AT_ONCE):
            table = table[: len(heads) - at]
            table["head"] = heads[at : at + _AT_ONCE]
            table["hidden"] = hidden[at : at + _AT_ONCE]
            table["prefix"]["checksum"] = _checksums(table)
            rows.extend(row.tobytes() for row in _as_bytes(table))
        return rows

    def decode(self, rows: Sequence[bytes]) -> Decoded:
        """Take rows apart; a damaged row never passes for an intact one.

        A row of another layout is converted: of its ring and its recommended items the newest
        and the first that fit are kept, the hidden state is zero, of no weights and no model,
        and starts at the row's own `event_count`.

        Raises:
            StateFormatUnknown: A row has the magic and a format version that is not ours.
        """
        n = len(rows)
        rows = [row if row[:8] == _START else _renewed(row) for row in rows]
        heads = self.new_heads(n)
        hidden = np.zeros((n, self.blocks, self.channels), np.complex64)
        damaged = np.ones(n, np.bool_)
        converted = np.zeros(n, np.bool_)
        for layout, at in _by_layout(rows):
            table = np.frombuffer(b"".join([rows[i] for i in at]), layout.row_dtype)
            intact = table["prefix"]["checksum"] == _checksums(table)
            index = np.array(at)
            if not intact.all():
                table, index = table[intact], index[intact]
            damaged[index] = False
            if layout == self:
                heads[index] = table["head"]
                hidden[index] = table["hidden"]
            else:
                converted[index] = True
                heads[index] = self.convert_heads(table["head"])
        return Decoded(heads=heads, hidden=hidden, damaged=damaged, converted=converted)

    @cached_property
    def _sizes(self) -> tuple[int, int, int, int]:
        return self.ring, self.recommended, self.blocks, self.channels

    def convert_heads(self, others: Heads) -> Heads:
        """Return heads (n,) of another layout as heads of this one, without a hidden state."""
        heads = self.new_heads(len(others))
        kept_names = "event_count partition offset timestamp_ms forgotten_before_ms event_ids"
        for name in kept_names.split():
            heads[name] = others[name]
        heads["started_at"] = heads["event_count"]
        kept = min(self.recommended, others["recommended"].shape[1])
        heads["recommended"][:, :kept] = others["recommended"][:, :kept]
        kept = min(self.ring, others["ring"].shape[1])
        events = others["event_count"][:, None] - np.arange(1, kept + 1)  # before the first: 0
        user = np.arange(len(others))[:, None]
        heads["ring"][user, events % self.ring] = others["ring"][
            user, events % others["ring"].shape[1]
        ]
        return heads


def layout_of(row: bytes) -> RowLayout | None:
    """Return the layout that a row was written under, to decode it without converting it.

    None where the bytes name none, are not as many as it says, or of another format version. That
    the row is intact is for `decode` to find out.
    """
    row = _renewed(row)
    layout = _layout_of_sizes(row[16:32]) if row[:8] == _START else None
    return layout if layout is not None and len(row) == layout.row_bytes else None


def ring_items(heads: Heads) -> tuple[npt.NDArray[np.uint64], npt.NDArray[np.int64]]:
    """Return the items that the rings hold, oldest first.

    Args:
        heads: (n,) of any layout.

    Returns:
        Items (n, ring), of which the first `length` are a user's and the rest are 0, and the
        lengths (n,). A length is below min(event_count, ring) where the row was converted from a
        shorter ring.
    """
    ring = heads["ring"]
    size = ring.shape[1]
    lengths = np.count_nonzero(ring, axis=1)
    slots = ((heads["event_count"] - lengths)[:, None] + np.arange(size)) % size
    return np.take_along_axis(ring, slots, axis=1), lengths


def append_items(
    heads: Heads, rows_index: npt.NDArray[np.int64], items: npt.NDArray[np.uint64]
) -> None:
    """Apply e events to heads in place: fill their rings and raise their event counts.

    Args:
        heads: (n,) of any layout, changed in place.
        rows_index: int64 (e,), the head of each event.
        items: uint64 (e,), its item; the events of one head come oldest first, those of
            different heads in any order, and one head may get more than its ring holds.

    Raises:
        ValueError: Lengths differ, an index is negative or an item is 0; nothing was changed.
        IndexError: An index is beyond the heads; nothing was changed.
    """
    if rows_index.shape != items.shape or (rows_index < 0).any() or not items.all():
        msg = (
            f"append_items: expected as many items as heads, no negative index and no item 0, "
            f"got {rows_index.shape} indices from {rows_index.min(initial=0)} and {items.shape} "
            f"items, {np.count_nonzero(items == 0)} of them 0"
        )
        raise ValueError(msg)
    order = rows_index.argsort(kind="stable")
    index = rows_index[order]
    is_first = np.ones(len(index), np.bool_)
    np.not_equal(index[1:], index[:-1], out=is_first[1:])
    starts = is_first.nonzero()[0]
    nth = np.arange(len(index)) - starts[is_first.cumsum() - 1]  # of its head's events here
    slots = (heads["event_count"][index] + nth) % heads["ring"].shape[1]
    # Of the events that meet in one slot numpy leaves the last.
    heads["ring"][index, slots] = items[order]
    np.add.at(heads["event_count"], index, 1)


def _as_bytes(table: Heads) -> npt.NDArray[np.uint8]:
    return table.view(np.uint8).reshape(len(table), table.dtype.itemsize)


def _checksums(table: Heads) -> npt.NDArray[np.uint64]:
    """Return the checksum (n,) of each row of a contiguous table of some layout's `row_dtype`."""
    size = table.dtype.itemsize
    checked = _as_bytes(table).reshape(-1).data
    ends = range(size, len(checked) + 1, size)
    return np.array(
        [xxh3_64_intdigest(checked[end - size + _CHECKED_FROM : end]) for end in ends], np.uint64
    )


def _renewed(row: bytes) -> bytes:
    """Return a row of format 1 as one of the present format, damaged if it was; others as given."""
    if row[:8] != _START_1:
        return row
    is_intact = row[8:16] == xxh3_64_intdigest(row[16:]).to_bytes(8, "little")
    body = row[16:_LONGER_FROM] + bytes(8) + row[_LONGER_FROM:]
    checksum = xxh3_64_intdigest(body) ^ (not is_intact)
    return _START + checksum.to_bytes(8, "little") + body


def _by_layout(rows: Sequence[bytes]) -> Iterator[tuple[RowLayout, list[int]]]:
    """Yield each layout that rows name and at most `_AT_ONCE` indices of such rows at a time.

    Rows that name no layout, or are not as long as theirs, are left out.

    Raises:
        StateFormatUnknown: A row has the magic and a format version that is not ours.
    """
    by_sizes: dict[bytes, list[int]] = {}
    for i, row in enumerate(rows):
        if row[:8] == _START:
            by_sizes.setdefault(row[16:32], []).append(i)
        elif row[:4] == MAGIC and len(row) >= len(_START):
            msg = (
                f"row {i} of {len(rows)}: expected a state row of format version {FORMAT_VERSION}, "
                f"got version {int.from_bytes(row[4:8], 'little')}; run the release of this "
                f"program that wrote it, or a later one"
            )
            raise StateFormatUnknown(msg, row=i)
    for sizes, index in by_sizes.items():
        layout = _layout_of_sizes(sizes)
        if layout is None:
            continue
        fitting = [i for i in index if len(rows[i]) == layout.row_bytes]
        for at in range(0, len(fitting), _AT_ONCE):
            yield layout, fitting[at : at + _AT_ONCE]


def _layout_of_sizes(sizes: bytes) -> RowLayout | None:
    """Return the layout that these bytes of a prefix name; None for too few, or sizes of none."""
    try:
        ring, recommended, blocks, channels = np.frombuffer(sizes, "<u4").tolist()
        return RowLayout(ring=ring, recommended=recommended, blocks=blocks, channels=channels)
    except ValueError:
        return None
