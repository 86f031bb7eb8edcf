"""What is noted of a database's files, and what of it counts as lost; on files alone."""

from pathlib import Path

import pytest

from state.manifest import ManifestFloor


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    """A MANIFEST of ten bytes, two logs with rows, and what else lies in such a folder."""
    (tmp_path / "CURRENT").write_text("MANIFEST-000004\n")
    (tmp_path / "MANIFEST-000004").write_bytes(bytes(10))
    for name in ("000003.log", "000005.log", "000006.sst", "LOG", "old.log", "5.log.bak"):
        (tmp_path / name).write_bytes(b"rows")
    return tmp_path


@pytest.mark.parametrize(
    ("gone", "later", "lost"),
    [
        ([], False, {}),
        ([3], False, {3: "000003.log"}),
        ([5], False, {}),
        ([3, 5], False, {}),
        ([5], True, {5: "000005.log"}),
        ([3, 5], True, {3: "000003.log", 5: "000005.log"}),
    ],
    ids=["none", "the older", "the torn end", "all", "before an unnoted one", "all before it"],
)
@pytest.mark.parametrize("emptied", [False, True])
def test_a_log_is_lost_where_a_later_one_has_rows(
    folder: Path, gone: list[int], later: bool, lost: dict[int, str], emptied: bool
) -> None:
    """Whether it is gone or empty; what no log with rows comes after is the torn end."""
    ManifestFloor(folder).note()
    for number in gone:
        log = folder / f"{number:06}.log"
        log.write_bytes(b"") if emptied else log.unlink()
    (folder / "000007.log").write_bytes(b"rows" if later else b"")

    assert ManifestFloor(folder).lost_logs() == lost


def test_a_log_that_had_no_rows_is_never_lost(folder: Path) -> None:
    """It is not noted."""
    (folder / "000003.log").write_bytes(b"")
    ManifestFloor(folder).note()
    (folder / "000003.log").unlink()

    assert ManifestFloor(folder).lost_logs() == {}


@pytest.mark.parametrize(("size", "is_damaged"), [(9, True), (10, False), (11, False)])
def test_a_manifest_is_damaged_where_it_is_shorter_than_it_was(
    folder: Path, size: int, is_damaged: bool
) -> None:
    """The complaint has the file and both lengths."""
    ManifestFloor(folder).note()
    (folder / "MANIFEST-000004").write_bytes(bytes(size))

    expected = f"expected at least 10 bytes of MANIFEST-000004, got {size}" if is_damaged else None
    assert ManifestFloor(folder).complaint() == expected


def test_a_note_of_a_manifest_that_is_gone_says_nothing(folder: Path) -> None:
    """RocksDB made another one, and was killed before that was noted."""
    ManifestFloor(folder).note()
    (folder / "MANIFEST-000004").rename(folder / "MANIFEST-000008")

    assert ManifestFloor(folder).complaint() is None


@pytest.mark.parametrize(
    "note",
    [
        None,
        b"",
        b"MANIFEST-000004",
        b"MANIFEST-000004 1x",
        b"MANIFEST-000004 10 00000x.log",
        b"\xff",
    ],
)
def test_a_note_that_was_torn_says_nothing(folder: Path, note: bytes | None) -> None:
    """What a power cut may leave of it is no damage of the database."""
    if note is not None:
        (folder / "manifest-floor").write_bytes(note)
    (folder / "000003.log").unlink()

    assert ManifestFloor(folder).complaint() is None
    assert ManifestFloor(folder).lost_logs() == {}


def test_a_floor_that_cannot_be_raised_is_still_a_floor(folder: Path) -> None:
    """While there is no CURRENT, or its MANIFEST is not there yet, the last note holds."""
    floor = ManifestFloor(folder)
    floor.note()
    (folder / "MANIFEST-000004").write_bytes(bytes(20))
    (folder / "CURRENT").write_text("MANIFEST-000009\n")
    floor.note()
    (folder / "CURRENT").unlink()
    floor.note()
    (folder / "MANIFEST-000004").write_bytes(bytes(9))

    assert ManifestFloor(folder).complaint() == (
        "expected at least 10 bytes of MANIFEST-000004, got 9"
    )


def test_files_are_looked_at_again_when_their_generation_is_another(folder: Path) -> None:
    """Until then a note costs nothing; without a generation each is taken."""
    floor, noted = ManifestFloor(folder), []
    for size, generation in ((10, 1), (11, 1), (12, 2), (13, None), (14, 2)):
        (folder / "MANIFEST-000004").write_bytes(bytes(size))
        floor.note(generation)
        noted.append((folder / "manifest-floor").read_text().split()[1])

    assert noted == ["10", "10", "12", "13", "14"]


def test_the_first_rows_of_the_newest_log_are_noted(folder: Path) -> None:
    """They change no other file, so the generation is the same."""
    floor = ManifestFloor(folder)
    (folder / "000007.log").touch()
    floor.note(1)
    (folder / "000007.log").write_bytes(b"rows")
    floor.note(1)
    (folder / "000007.log").unlink()
    (folder / "000008.log").write_bytes(b"rows")

    assert ManifestFloor(folder).lost_logs() == {7: "000007.log"}


def test_a_database_without_logs_is_noted(folder: Path) -> None:
    """As between a flush and the next write."""
    for number in (3, 5):
        (folder / f"{number:06}.log").unlink()

    ManifestFloor(folder).note(1)

    assert (folder / "manifest-floor").read_text() == "MANIFEST-000004 10\n"


def test_what_is_as_noted_is_not_written_again(folder: Path) -> None:
    """Each checkpoint asks."""
    floor = ManifestFloor(folder)
    floor.note(1)
    (folder / "manifest-floor").unlink()

    floor.note(2)

    assert not (folder / "manifest-floor").exists()
