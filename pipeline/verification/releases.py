"""The announced releases, as little of each as it takes to judge lists by thousands of them."""

import logging
from collections.abc import Iterable, Sequence
from dataclasses import dataclass

import numpy as np
import numpy.typing as npt

from models.config import ModelConfig
from models.release import Release
from pipeline.cluster.records import Record
from pipeline.errors import SwapRejected
from pipeline.worker.releases import Announcement, decode_announcement, open_announced

logger = logging.getLogger(__name__)

Ints = npt.NDArray[np.int64]


@dataclass(frozen=True, eq=False)
class KnownItems:
    """What is held of a release that can be read: 12 bytes an item, neither ids nor weights.

    Attributes:
        weights_id: Identity of the weights.
        config: Sizes of the model.
        hashes: uint64 (n_items + 1,), the items' hashes and the pad's 0, in ascending order.
        indices: int32 (n_items + 1,), the index of each.
    """

    weights_id: int
    config: ModelConfig
    hashes: npt.NDArray[np.uint64]
    indices: npt.NDArray[np.int32]

    def indices_of(self, hashes: Sequence[int]) -> Ints:
        """Return the index of each hash, 0 where the release does not know its item."""
        wanted = np.array(hashes, np.uint64)
        places = np.searchsorted(self.hashes, wanted)
        places[places == len(self.hashes)] = 0  # the pad's
        return np.where(self.hashes[places] == wanted, self.indices[places], 0).astype(np.int64)

    def known_of(self, hashes: Sequence[int]) -> list[int]:
        """Return the indices of those hashes whose items the release knows."""
        indices = self.indices_of(hashes)
        known: list[int] = indices[indices > 0].tolist()
        return known


@dataclass(frozen=True, eq=False)
class KnownRelease:
    """An announced release.

    Attributes:
        announcement: Its announcement.
        release: What is held of it; None where it cannot be read any more.
    """

    announcement: Announcement
    release: KnownItems | None

    @property
    def version(self) -> int:
        """As announced."""
        return self.announcement.version

    @property
    def weights_id(self) -> int:
        """Identity of the weights; 0 where the release cannot be read."""
        return self.release.weights_id if self.release else 0

    def open(self) -> Release:
        """Read it once more, to compute with.

        Raises:
            SwapRejected: It cannot be read any more.
        """
        return open_announced(self.announcement)


def read_releases(announcements: Iterable[Record]) -> list[KnownRelease]:
    """Return every announced release, in the order of their announcements."""
    releases: list[KnownRelease] = []
    for record in announcements:
        announcement = decode_announcement(record)
        if announcement is None:
            continue
        try:
            release = open_announced(announcement)
        except SwapRejected as error:
            logger.warning("%s; what it made cannot be verified", error)
            releases.append(KnownRelease(announcement, None))
            continue
        hashes = release.vocabulary.hashes
        order = np.argsort(hashes)
        items = KnownItems(
            release.weights_id, release.config, hashes[order], order.astype(np.int32)
        )
        releases.append(KnownRelease(announcement, items))
    return releases


def announced_versions(announcements: Iterable[Record]) -> set[int]:
    """Return the versions of all announced releases."""
    found = map(decode_announcement, announcements)
    return {announcement.version for announcement in found if announcement is not None}
