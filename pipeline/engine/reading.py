"""Where the reading of one partition of the changelog stands."""

import asyncio
from dataclasses import dataclass, field


@dataclass(eq=False, kw_only=True)
class Reading:
    """One partition on its way into the store.

    Attributes:
        partition: Its number.
        mark: Names the changelog and where it begins; noted in the store once both agree.
        reflects: Up to which source offset the local rows surely reflect the source, see `Mark`.
        next_offset: The offset to fetch next.
        end: Where the changelog ended when the reading began.
        follow: Whether to go on behind it, as a standby.
        broken: The changelog does not continue the local rows: it is read from its beginning, and
            what is older than the local rows is left out.
        seen: Of a broken one, the keys of which the changelog holds the newest row.
        lacking: Of a broken standby that caught up, the keys of which it does not.
        in_bulk: Whether the rows up to `end` may be forgotten by a crash, with their position.
        written_to: The offset up to which the store has everything.
        applied: Records written so far.
        caught_up: Set when all up to `end` is written.
        failed: Completes with what went wrong, never otherwise.
        dropped: Nothing of it may be written any more.
    """

    partition: int
    mark: bytes
    reflects: int | None = None
    next_offset: int
    end: int
    follow: bool
    broken: bool
    in_bulk: bool
    written_to: int
    seen: set[bytes] = field(default_factory=set)
    lacking: set[bytes] | None = None
    applied: int = 0
    caught_up: asyncio.Event = field(default_factory=asyncio.Event)
    failed: asyncio.Future[None] = field(
        default_factory=lambda: asyncio.get_running_loop().create_future()
    )
    dropped: bool = False

    @property
    def left(self) -> int:
        """Offsets up to `end` that the store does not have yet: as many records, or fewer."""
        return max(0, self.end - self.written_to)

    def fail(self, error: BaseException) -> None:
        """Tell whoever waits for it."""
        if not self.failed.done():
            self.failed.set_exception(error)
            self.failed.exception()  # nobody may wait for it any more
