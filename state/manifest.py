"""Guards that RocksDB lacks: it takes a cut-off MANIFEST for a younger one, and skips a lost log.

The MANIFEST lists the table files. Its end may be missing after a power cut, so RocksDB reads it
as far as it goes; rows of a table that it no longer lists are gone, while newer rows, and with
them the position, come back from the write-ahead log. RocksDB syncs the MANIFEST before it drops
a log, so a MANIFEST that is shorter than it once was is damaged.

There are several logs while rows of the older ones become a table. An older one that is gone or
empty is no torn end to RocksDB: it goes on with the next one, and its position promises the rows
between. RocksDB drops a log only after the MANIFEST says that it is not needed, whenever it is
killed. So a log that once had rows, that the MANIFEST still needs, and that has none any more, was
lost; before a later one with rows, that is damage, else it is the torn end.

The size of the MANIFEST and the names of the logs with rows, as seen after the last write that
changed either, are kept in a small file beside them.
"""

import os
from contextlib import suppress
from pathlib import Path


class ManifestFloor:
    """The size that the MANIFEST of one database has at least, and logs that had rows then.

    Args:
        folder: The database's folder.
    """

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._path = folder / "manifest-floor"
        self._noted = ""
        self._generation: int | None = None  # of the files when they were noted

    def complaint(self) -> str | None:
        """Say what is wrong with the MANIFEST, None if it is at least as long as was noted."""
        # The note may be of an older MANIFEST, which is gone, and a power cut may leave it empty.
        with suppress(OSError, ValueError):
            name, floor, *_ = self._path.read_text().split()
            size = (self._folder / name).stat().st_size
            if size < int(floor):
                return f"expected at least {floor} bytes of {name}, got {size}"
        return None

    def lost_logs(self) -> dict[int, str]:
        """Return the noted logs without rows before a log with rows, by number.

        Most often RocksDB itself dropped them; it did not where the MANIFEST needs them.
        """
        with suppress(OSError, ValueError):
            _, _, *noted = self._path.read_text().split()
            sizes = self._logs()
            last = max((number for number, size in sizes.items() if size), default=-1)
            numbers = {int(name.removesuffix(".log")): name for name in noted}
            return {n: name for n, name in numbers.items() if n < last and not sizes.get(n)}
        return {}

    def note(self, generation: int | None = None) -> None:
        """Note the MANIFEST and the logs with rows.

        Args:
            generation: A number that changes with the files; nothing happens where it is that of
                the last note.
        """
        if generation is not None and generation == self._generation:
            return
        # A floor that cannot be raised, on a full disk or while RocksDB starts its next MANIFEST,
        # is still a floor.
        with suppress(OSError):
            name = (self._folder / "CURRENT").read_text().strip()
            size = (self._folder / name).stat().st_size
            logs = self._logs()
            used = [f"{number:06}.log" for number in sorted(logs) if logs[number]]
            note = " ".join([name, str(size), *used]) + "\n"
            if note != self._noted:
                written = self._path.with_suffix(".new")
                written.write_text(note)
                os.replace(written, self._path)
                self._noted = note
            # The first rows in an empty log change no other file.
            self._generation = generation if logs and logs[max(logs)] else None

    def _logs(self) -> dict[int, int]:
        """Return the size of each write-ahead log, by number."""
        with os.scandir(self._folder) as entries:
            return {
                int(entry.name.removesuffix(".log")): entry.stat().st_size
                for entry in entries
                if entry.name.endswith(".log") and entry.name[:-4].isdecimal()
            }
