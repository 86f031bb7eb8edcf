"""Loading announced releases beside the one that serves, in a thread that nothing waits for."""

import logging
import time

from models.errors import ModelError
from models.serving.graphs import SETTING_UP
from models.serving.native import NativeServing
from pipeline.cluster.records import Record
from pipeline.errors import SwapRejected
from pipeline.metrics import Metrics
from pipeline.settings import Settings
from pipeline.worker.releases import (
    Announcement,
    decode_announcement,
    open_announced,
    read_announcements,
)
from pipeline.worker.served_model import ModelHolder, fastest_serving, prepare

logger = logging.getLogger(__name__)


class Swapper:
    """Turns announcements into models that wait for their turn.

    All or nothing: a release that is missing, damaged, of another format, or whose scores are not
    finite leaves the old one serving, is counted and logged.

    Args:
        settings: All settings.
        metrics: Counts what happens.

    Attributes:
        holder: The model that serves and the one that will.
    """

    def __init__(self, settings: Settings, metrics: Metrics) -> None:
        self._settings = settings
        self._metrics = metrics
        self.holder = ModelHolder()
        self._native: NativeServing | None = None

    def catch_up(self) -> dict[int, int]:
        """Load the release that was announced last and can be served, if any.

        Compiles the native form where that is wanted; all releases are then served by it.

        Returns:
            Where to follow the models topic from: partition to offset.

        Raises:
            SwapRejected: Releases were announced, and none can be served. Without one, states would
                be cut to what such a worker remembers, and good lists give way to what is popular.
        """
        self._native = fastest_serving(self._settings.worker)
        announced = list(read_announcements(self._settings))
        for offset, announcement in reversed(announced):
            if self._load(announcement):
                logger.info(
                    "release %d serves (announced at offset %d)", announcement.version, offset
                )
                self.holder.take_next()
                break
            if offset == announced[-1][0]:
                self._metrics.rejected_version.set(announcement.version)
        else:
            if announced:
                msg = (
                    f"{self._settings.topics.models}: of the {len(announced)} releases announced "
                    f"there none can be served (the log says why); see to "
                    f"{announced[-1][1].location}, or make one: lrurec train"
                )
                raise SwapRejected(msg)
            logger.warning(
                "no release was announced: recommendations are what is popular until one comes "
                "(make one: lrurec train)"
            )
        return {0: announced[-1][0] + 1} if announced else {}

    def hear(self, record: Record) -> None:
        """Take one record of the models topic: load what it announces, to be served next."""
        announcement = decode_announcement(record)
        if announcement is not None:
            is_loaded = self._load(announcement)
            self._metrics.rejected_version.set(0 if is_loaded else announcement.version)

    def _load(self, announcement: Announcement) -> bool:
        started_s = time.monotonic()
        recommend, worker = self._settings.recommend, self._settings.worker
        try:
            release = open_announced(announcement)
            with SETTING_UP:
                model = prepare(
                    release,
                    device=worker.device,
                    top_k=recommend.top_k,
                    ring=recommend.ring,
                    native=self._native,
                    hot_rows=worker.hot_rows,
                )
        except (SwapRejected, ModelError) as error:
            self._metrics.model_swaps["rejected"].inc()
            logger.error("%s; the model that serves stays", error)
            return False
        except Exception:  # memory that does not suffice, say: no reason to stop serving
            self._metrics.model_swaps["rejected"].inc()
            logger.exception(
                "release %d at %s cannot be loaded; the model that serves stays",
                announcement.version,
                announcement.location,
            )
            return False
        self.holder.offer(model)
        self._metrics.model_swaps["loaded"].inc()
        self._metrics.model_swap_seconds.observe(time.monotonic() - started_s)
        return True
