"""Batches that would become too large are known before they are unpacked, and no others refused."""

import random
import struct

import cramjam
import pytest
from aiokafka import codec
from hypothesis import given
from hypothesis import strategies as st

from pipeline.cluster.header_names import _TolerantRecords
from pipeline.cluster.unpacked_size import (
    GZIP_RATIO,
    MAX_BYTES,
    MAX_RECORDS,
    ZSTD_BLOCK_BYTES,
    BatchTooLarge,
    require_sensible,
    zstd_bound,
)
from tests.property.test_pipeline_header_names import CODECS, Written, batch

CONTENTS = st.builds(
    lambda piece, times, rest: piece * times + rest,
    st.binary(max_size=20),
    st.integers(0, 50_000),
    st.binary(max_size=300),
)
SKIPPED = b"\x5b\x2a\x4d\x18\x02\0\0\0hi"  # a frame of zstd that holds nothing


@given(frames=st.lists(st.tuples(CONTENTS, st.sampled_from([-5, 1, 3, 19])), max_size=3))
def test_a_bound_of_zstd_holds(frames: list[tuple[bytes, int]]) -> None:
    """At any level, of several frames, and it is no more than a block a frame too high."""
    packed = SKIPPED.join(bytes(cramjam.zstd.compress(data, level)) for data, level in frames)

    bound = zstd_bound(memoryview(packed))

    size = sum(len(data) for data, _ in frames)
    assert size <= bound <= size + len(frames) * ZSTD_BLOCK_BYTES


BLOCKS = st.lists(st.tuples(st.integers(0, 2), st.integers(0, 300)), min_size=1, max_size=3)
HEADS = st.tuples(st.integers(0, 3), st.booleans(), st.booleans(), st.integers(0, 3))


@given(st.lists(st.tuples(HEADS, BLOCKS), max_size=3))
def test_frames_of_zstd_are_read_in_every_form(
    frames: list[tuple[tuple[int, bool, bool, int], list[tuple[int, int]]]],
) -> None:
    """RFC 8878, 3.1.1: whichever fields their heads have, and with a checksum behind or not."""
    packed, expected = b"", 0
    for (size_flag, is_single, has_checksum, dictionary_flag), blocks in frames:
        window, dictionary = (b"" if is_single else b"w"), b"dict"[: (0, 1, 2, 4)[dictionary_flag]]
        size = bytes((1 if is_single else 0, 2, 4, 8)[size_flag])
        descriptor = size_flag << 6 | is_single << 5 | has_checksum << 2 | dictionary_flag
        packed += b"\x28\xb5\x2f\xfd" + bytes([descriptor]) + window + dictionary + size
        for number, (kind, length) in enumerate(blocks, 1):
            head = (number == len(blocks)) | kind << 1 | length << 3
            packed += head.to_bytes(3, "little") + bytes(1 if kind == 1 else length)
            expected += ZSTD_BLOCK_BYTES if kind == 2 else length
        packed += b"sum." if has_checksum else b""

    assert zstd_bound(memoryview(packed)) == expected


@given(data=CONTENTS, damage=st.lists(st.tuples(st.integers(0, 200), st.integers(0, 255))))
def test_damaged_bytes_have_a_bound_too(data: bytes, damage: list[tuple[int, int]]) -> None:
    """Whoever unpacks them says what is wrong with them."""
    packed = bytearray(cramjam.zstd.compress(data))
    for at, byte in damage:
        packed[at % len(packed)] = byte

    assert zstd_bound(memoryview(packed)) >= 0


@given(
    values=st.lists(st.binary(max_size=200), min_size=1, max_size=5),
    number=st.integers(0, len(CODECS) - 1),
)
def test_what_is_sensible_is_read(values: list[bytes], number: int) -> None:
    """In every compression."""
    written = batch([Written(value=value) for value in values], 7, (0, 0), number)

    found = [record.value for record in _TolerantRecords(written).next_batch()]

    assert found == values


def with_content(content: bytes, number: int, count: int = 1) -> bytes:
    """A batch that claims a number of records and has these packed bytes."""
    head = struct.pack(">hiqqqhii", number, 9, 0, 0, -1, -1, -1, count)
    rest = struct.pack(">ibI", -1, 2, 0) + head + content
    return struct.pack(">qi", 41, len(rest)) + rest


MEBIBYTE = bytes(1 << 20)
TOO_MANY = MAX_BYTES // len(MEBIBYTE) + 1


@pytest.mark.parametrize(
    "bomb",
    [
        with_content(codec.zstd_encode(MEBIBYTE) * TOO_MANY, 4),
        with_content(codec.zstd_encode(MEBIBYTE * TOO_MANY), 4),
        with_content(codec.gzip_encode(MEBIBYTE) * TOO_MANY, 1),
        with_content(b"", 0, count=MAX_RECORDS + 1),
    ],
    ids=["zstd, many frames", "zstd", "gzip", "records"],
)
def test_what_would_not_fit_is_refused(bomb: bytes) -> None:
    """From fewer bytes than a broker takes; before anything of it is unpacked."""
    assert len(bomb) < 1 << 20

    with pytest.raises(BatchTooLarge, match=f"offsets 41 to 50, {len(bomb)} bytes: expected at"):
        list(_TolerantRecords(bomb).next_batch())


def test_what_just_fits_is_taken() -> None:
    """The bound is for what nobody sends in earnest."""
    for number, encode in ((1, codec.gzip_encode), (4, codec.zstd_encode)):
        require_sensible(memoryview(with_content(encode(MEBIBYTE) * (TOO_MANY - 1), number)))
    require_sensible(memoryview(with_content(b"", 0, count=MAX_RECORDS)))


def test_what_is_no_whole_batch_is_left_to_whoever_reads_it() -> None:
    """However early it ends."""
    whole = with_content(b"", 4)
    for end in range(len(whole)):
        require_sensible(memoryview(whole)[:end])


@pytest.mark.parametrize("number", [1, 4])
@pytest.mark.parametrize("damage", ["cut off", "junk behind", "junk"])
def test_what_cannot_be_unpacked_is_left_to_whoever_tries(number: int, damage: str) -> None:
    """Be it so much that it is looked into."""
    content = random.Random(0).randbytes(MAX_BYTES // GZIP_RATIO + 1000)
    packed = codec.gzip_encode(content) if number == 1 else codec.zstd_encode(content)
    damaged = {"cut off": packed[:-20], "junk behind": packed + b"ju", "junk": b"junk" + packed}

    require_sensible(memoryview(with_content(damaged[damage], number)))
