"""The folder of the releases as trainings see it: one at a time, and what an interrupted one left.

`<releases_dir>/.training` holds a lock, which the kernel lets go of whatever kills its holder, the
plan (which offsets the training reads) and the checkpoint of the model. Nothing here is a release.
"""

import fcntl
import logging
import os
import re
from collections.abc import Collection, Iterable, Iterator
from contextlib import contextmanager, suppress
from itertools import count
from pathlib import Path

import msgspec

from models.errors import ModelError
from models.manifest import Manifest
from models.release import read_manifest
from models.training.checkpoint import CheckpointUnwritable, ResumeMismatch
from pipeline.cluster.topics import NO_ID, may_be_same
from pipeline.errors import FolderUnusable, TrainingLocked

_log = logging.getLogger(__name__)

VERSION = re.compile(r"[1-9][0-9]{0,6}")
MAX_COUNTED = 1_000_000
"""Largest announced number that new ones go on from: who may announce could else use up those of
seven digits by one record. A trainer that releases every minute gets there in two years."""


class TrainingPlan(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """What a training that is resumed must read again.

    Attributes:
        topic: Name of the interactions topic.
        topic_id: What tells it from another of its name: made anew, or of another cluster.
        ranges: Per partition the first offset and the one to stop before.
    """

    topic: str
    topic_id: str = NO_ID
    ranges: dict[int, tuple[int, int]]


class TrainingFolder:
    """Access to `<releases_dir>/.training`; what changes it needs the lock.

    Args:
        releases_dir: Folder of the releases; made if it is missing.
    """

    def __init__(self, releases_dir: Path) -> None:
        self._path = releases_dir / ".training"
        self._plan = self._path / "plan.json"
        self.checkpoint = self._path / "checkpoint.pt"

    @contextmanager
    def locked(self) -> Iterator[None]:
        """Hold the lock meanwhile; it ends with the process, however that ends.

        Raises:
            TrainingLocked: Another training runs; the message has its process id.
            FolderUnusable: The folder cannot be written.
        """
        lock = self._path / "lock"
        try:
            self._path.mkdir(parents=True, exist_ok=True)
            descriptor = os.open(lock, os.O_RDWR | os.O_CREAT, 0o644)
        except OSError as exc:
            msg = f"trainer.releases_dir must be a folder that can be written: {exc}"
            raise FolderUnusable(msg) from exc
        try:
            try:
                fcntl.flock(descriptor, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError as exc:
                owner = os.read(descriptor, 20).decode(errors="replace").strip() or "unknown"
                msg = f"{self._path.parent}: another training runs there (process {owner})"
                raise TrainingLocked(msg) from exc
            except OSError as exc:
                msg = f"trainer.releases_dir must be on a file system with locks: {lock}: {exc}"
                raise FolderUnusable(msg) from exc
            with suppress(OSError):  # on a full disk the lock holds, but does not say whose it is
                os.ftruncate(descriptor, 0)
                os.write(descriptor, b"%d\n" % os.getpid())
            yield
        finally:
            os.close(descriptor)

    def read_plan(self, topic: str, topic_id: str = NO_ID) -> TrainingPlan | None:
        """Return what an interrupted training on this topic left; None where there is nothing.

        Raises:
            ResumeMismatch: It is of another topic, or damaged.
        """
        try:
            plan = msgspec.json.decode(self._plan.read_bytes(), type=TrainingPlan)
        except FileNotFoundError:
            return None
        except (OSError, ValueError) as exc:  # the latter also of a text that is no UTF-8
            msg = f"{self._plan} is not as it was written: {exc}"
            raise ResumeMismatch(msg) from exc
        if plan.topic != topic:
            msg = f"{self._plan} is of another training: expected topic {topic}, got {plan.topic}"
            raise ResumeMismatch(msg)
        if not may_be_same(plan.topic_id, topic_id):
            msg = f"{self._plan} is of another topic named {topic}, made anew or of another cluster"
            raise ResumeMismatch(msg)
        return plan

    def holds_plan(self) -> bool:
        """Tell whether a training was interrupted, or runs."""
        return self._plan.exists()

    def begin(self, plan: TrainingPlan) -> None:
        """Drop what an interrupted training left and note what the next one reads.

        Raises:
            CheckpointUnwritable: The operating system refuses.
        """
        self.clear()
        temporary = self._plan.with_suffix(".tmp")
        with self._changing():
            temporary.write_bytes(msgspec.json.encode(plan))
            temporary.replace(self._plan)

    def clear(self) -> None:
        """Forget the training: it is done, or not wanted any more.

        Raises:
            CheckpointUnwritable: The operating system refuses.
        """
        with self._changing():
            # First: without it there is nothing to go on with, wherever this is cut short.
            self._plan.unlink(missing_ok=True)
            self.checkpoint.unlink(missing_ok=True)
            for half_written in self._path.glob("*.tmp"):
                half_written.unlink(missing_ok=True)

    @contextmanager
    def _changing(self) -> Iterator[None]:
        try:
            yield
        except OSError as exc:
            msg = f"{self._path}: what a training reads cannot be noted: {exc}"
            raise CheckpointUnwritable(msg) from exc


def release_versions(releases_dir: Path) -> list[int]:
    """Return the versions that have a folder, rising; one named by a date, say, is none."""
    if not releases_dir.is_dir():
        return []
    names = (path.name for path in releases_dir.iterdir())
    return sorted(int(name) for name in names if VERSION.fullmatch(name))


def last_number(announced: Iterable[int]) -> int:
    """Return the highest announced number that new ones go on from; 0 where there is none."""
    return max((version for version in announced if version <= MAX_COUNTED), default=0)


def free_number(releases_dir: Path, announced: Collection[int]) -> int:
    """Return the number of the next release: behind those of the folder, and none announced."""
    newest = max([*release_versions(releases_dir), last_number(announced)])
    return next(version for version in count(newest + 1) if version not in announced)


def manifests(releases_dir: Path) -> Iterator[Manifest]:
    """Yield the manifests of the releases, newest first; those that cannot be read are logged."""
    for version in reversed(release_versions(releases_dir)):
        try:
            yield read_manifest(releases_dir / str(version))
        except ModelError as error:
            _log.warning("%s", error)
