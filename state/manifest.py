"""A guard that RocksDB lacks: it takes a cut-off MANIFEST for a younger one.

The MANIFEST lists the table files. Its end may be missing after a power cut, so RocksDB reads it
as far as it goes; rows of a table that it no longer lists are gone, while newer rows, and with
them the position, come back from the write-ahead log. RocksDB syncs the MANIFEST before it drops
a log, so a MANIFEST that is shorter than it once was is damaged. The size it has at least, as
seen after the last write, is kept in a small file beside it.
"""

import os
from contextlib import suppress
from pathlib import Path


class ManifestFloor:
    """The size that the MANIFEST of one database has at least.

    Args:
        folder: The database's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "manifest-floor"
        self._noted = ""

    def complaint(self) -> str | None:
        """Say what is wrong with the MANIFEST, None if it is at least as long as was noted."""
        # The note may be of an older MANIFEST, which is gone, and a power cut may leave it empty.
        with suppress(OSError, ValueError):
            name, floor = self._path.read_text().split()
            size = (self._folder / name).stat().st_size
            if size < int(floor):
                return f"expected at least {floor} bytes of {name}, got {size}"
        return None

    def note(self) -> None:
        """Note the size of the MANIFEST if it grew since it was noted last."""
        # A floor that cannot be raised, on a full disk or while RocksDB starts its next MANIFEST,
        # is still a floor.
        with suppress(OSError):
            name = (self._folder / "CURRENT").read_text().strip()
            note = f"{name} {(self._folder / name).stat().st_size}\n"
            if note != self._noted:
                written = self._path.with_suffix(".new")
                written.write_text(note)
                os.replace(written, self._path)
                self._noted = note
