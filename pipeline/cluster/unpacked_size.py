"""How large a compressed batch becomes, known before it does.

A broker bounds the bytes of a batch as it comes, and 64 KB of zstd may hold 2 GB. Whoever unpacks
that is killed for its memory, at every start again. So a batch is refused that becomes larger than
any sensible one. LZ4 and Snappy need no look: they never pack more than 255 and 22 bytes into one.
"""

import struct
import zlib

from aiokafka.errors import CorruptRecordException

MAX_BYTES = 128 << 20  # 1 MiB, a broker's default, packed 128 times: JSON makes 10 to 30
MAX_RECORDS = 1 << 20  # each of them becomes an object of some 300 bytes
GZIP_RATIO = 1032  # at most, by RFC 1951: 258 bytes for two bits
PIECE_BYTES = 1 << 20
ZSTD_BLOCK_BYTES = 128 << 10  # at most, by RFC 8878, 3.1.1.2
ZSTD_MAGIC = 0xFD2FB528
ZSTD_SKIPPABLE = 0x184D2A50

_GZIP, _ZSTD = 1, 4  # the codecs' numbers in Kafka's protocol
_ATTRIBUTES_AND_LAST = struct.Struct(">hi")  # and the last offset, less the first
_COUNT = struct.Struct(">i")
_MAGIC_AT, _ATTRIBUTES_AT, _COUNT_AT, _RECORDS_AT = 16, 21, 57, 61  # in a batch of format 2


class BatchTooLarge(CorruptRecordException):  # type: ignore[misc]  # untyped
    """A batch that is not unpacked."""


def require_sensible(batch: memoryview) -> None:
    """Refuse a batch that would not fit into memory; those of formats 0 and 1 are taken.

    Args:
        batch: The bytes of one, as Kafka keeps them.

    Raises:
        BatchTooLarge: It becomes larger than `MAX_BYTES`, or holds more than `MAX_RECORDS`.
    """
    if len(batch) < _RECORDS_AT or batch[_MAGIC_AT] < 2:
        return
    attributes, to_last = _ATTRIBUTES_AND_LAST.unpack_from(batch, _ATTRIBUTES_AT)
    (count,) = _COUNT.unpack_from(batch, _COUNT_AT)
    codec, packed = attributes & 7, batch[_RECORDS_AT:]
    if count <= MAX_RECORDS and not (
        (codec == _ZSTD and zstd_bound(packed) > MAX_BYTES)
        or (codec == _GZIP and _is_large_gzip(packed))
    ):
        return
    (first,) = struct.unpack_from(">q", batch)
    msg = (
        f"offsets {first} to {first + to_last}, {len(batch)} bytes: expected at most {MAX_BYTES} "
        f"bytes and {MAX_RECORDS} records of a batch when it is unpacked, got more"
    )
    raise BatchTooLarge(msg)


def zstd_bound(packed: memoryview) -> int:
    """Return how many bytes frames of zstd become at most; fewer where what follows is damaged."""
    total = at = 0
    try:
        while at < len(packed):
            (magic,) = struct.unpack_from("<I", packed, at)
            if magic & ~15 == ZSTD_SKIPPABLE:
                at += 8 + struct.unpack_from("<I", packed, at + 4)[0]
                continue
            if magic != ZSTD_MAGIC:
                break
            size, at = _zstd_frame_bound(packed, at + 4)
            total += size
    except (IndexError, struct.error):  # cut off: whoever unpacks it says so
        pass
    return total


def _zstd_frame_bound(packed: memoryview, at: int) -> tuple[int, int]:
    """Return the bound of the frame whose header stands there, and where it ends."""
    descriptor = packed[at]
    has_window, has_checksum = not descriptor & 0x20, bool(descriptor & 4)
    size_bytes = (0 if has_window else 1, 2, 4, 8)[descriptor >> 6]
    at += 1 + has_window + (0, 1, 2, 4)[descriptor & 3] + size_bytes
    total, is_last = 0, False
    while not is_last:
        header = packed[at] | packed[at + 1] << 8 | packed[at + 2] << 16
        is_last, kind, size = bool(header & 1), header >> 1 & 3, header >> 3
        total += ZSTD_BLOCK_BYTES if kind == 2 else size
        at += 3 + (1 if kind == 1 else size)
    return total, at + 4 * has_checksum


def _is_large_gzip(packed: memoryview) -> bool:
    if len(packed) * GZIP_RATIO <= MAX_BYTES:
        return False
    total, rest = 0, bytes(packed)
    try:
        while rest:
            member = zlib.decompressobj(wbits=31)
            while not member.eof:
                piece = member.decompress(rest, PIECE_BYTES)
                rest = member.unconsumed_tail
                total += len(piece)
                if total > MAX_BYTES:
                    return True
                if not (piece or rest):
                    return False  # cut off
            rest = member.unused_data
    except zlib.error:  # whoever unpacks it says so
        pass
    return False
