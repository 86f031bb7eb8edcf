"""The data that a demo runs on: the interactions that come with the package, or a file."""

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

import pipeline.data
from pipeline.files.interactions import read_interactions
from pipeline.files.items import read_titles
from pipeline.files.rows import Interactions

HISTORY_SHARE = 0.8
BUNDLED = "Online Retail"
BUNDLED_FILES = ("online-retail.csv.gz", "online-retail-items.tsv.gz")


@dataclass(frozen=True, kw_only=True, eq=False)
class DemoData:
    """What is replayed.

    Attributes:
        name: For people.
        interactions: All of them, by time.
        titles: Item id -> title; ids stand in for what is missing.
    """

    name: str
    interactions: Interactions
    titles: Mapping[str, str]

    @property
    def split(self) -> int:
        """How many rows come first, as history; the rest comes live."""
        return int(len(self.interactions) * HISTORY_SHARE)

    def describe(self) -> str:
        """Say in a line what it is."""
        rows = self.interactions
        return (
            f"{self.name}: {len(rows):,} events, {len(rows.user_ids):,} users, "
            f"{len(rows.item_ids):,} items"
        )


def read_demo_data(data: Path | None, items: Path | None) -> DemoData:
    """Read the files.

    Args:
        data: Interactions; None: those that come with the package.
        items: Titles; None: those that come with the package, or none for a file of one's own.

    Raises:
        DataFileInvalid: A file is not what it should be.
    """
    bundled, titles = (Path(pipeline.data.__path__[0]) / name for name in BUNDLED_FILES)
    if data is not None:
        return DemoData(
            name=data.name,
            interactions=read_interactions(data),
            titles={} if items is None else read_titles(items),
        )
    return DemoData(
        name=BUNDLED,
        interactions=read_interactions(bundled),
        titles=read_titles(items or titles),
    )
