"""What the stock app keeps of a user: how many events, the last one's offset, and a hash chain.

The chain is a digest of the digest before it and the event's offset: it is the same only where the
same events came in the same order.
"""

import hashlib
import struct
from dataclasses import dataclass

BYTES = struct.Struct("<qq16s")


@dataclass(frozen=True, kw_only=True)
class UserRow:
    """One user's row.

    Attributes:
        count: Events so far.
        offset: Source offset of the last one; an event at or below it changes nothing.
        chain: 16 bytes that all of them decide, and their order.
    """

    count: int = 0
    offset: int = -1
    chain: bytes = bytes(16)

    def after(self, offset: int) -> "UserRow":
        """Return the row after an event: the guard by offset."""
        if offset <= self.offset:
            return self
        chain = hashlib.blake2b(self.chain + struct.pack("<q", offset), digest_size=16).digest()
        return UserRow(count=self.count + 1, offset=offset, chain=chain)

    def encode(self) -> bytes:
        return BYTES.pack(self.count, self.offset, self.chain)

    @classmethod
    def decode(cls, value: bytes | None) -> "UserRow":
        if value is None:
            return cls()
        count, offset, chain = BYTES.unpack(value)
        return cls(count=count, offset=offset, chain=chain)
