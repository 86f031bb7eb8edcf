"""Recommendations as they leave, for people: with titles, one line each or as a live table."""

import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from pathlib import Path
from typing import NamedTuple

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.cluster.records import Record, follow_topic, place_of, read_partitions
from pipeline.errors import TopicMismatch
from pipeline.files.items import read_titles
from pipeline.printable import printable
from pipeline.settings import Settings
from pipeline.worker.catalogue import CatalogueItem
from pipeline.worker.wire import Recommendation

_log = logging.getLogger(__name__)

TABLE_ITEMS = 3
TABLE_ROWS = 20
WITHDRAWN = "list withdrawn"


class Withdrawal(NamedTuple):
    """A null value: whoever keeps a list of the user is to drop it."""

    user_id: str


Shown = Recommendation | Withdrawal


def load_titles(settings: Settings, items_file: Path | None) -> dict[str, str]:
    """Return item id -> title, from a file or, without one, from the items topic.

    A missing topic means no titles; an item without one is shown by its id.

    Raises:
        DataFileInvalid: The file is not what it should be.
        BrokerUnavailable: No answer from Kafka.
    """
    if items_file is not None:
        return read_titles(items_file)
    titles: dict[str, str] = {}
    try:
        for record in read_partitions(settings.kafka, settings.topics.items):
            if record.key is None:
                continue
            item_id = record.key.decode(errors="replace")
            title = _title(record.value)
            if title is None:
                titles.pop(item_id, None)
            else:
                titles[item_id] = title
    except TopicMismatch as exc:
        _log.warning("no titles: %s", exc)
    return titles


def _title(value: bytes | None) -> str | None:
    try:
        return None if value is None else msgspec.json.decode(value, type=CatalogueItem).title
    except (ValueError, RecursionError):  # of msgspec, of a text that is no UTF-8, of deep nesting
        return None


def follow_recommendations(
    settings: Settings, *, users: Collection[str] = (), from_start: bool = False
) -> Iterator[Shown]:
    """Follow the recommendations topic without end, from its end as it is at this call.

    Args:
        settings: Cluster and topic.
        users: Only these; empty: everyone.
        from_start: Whether to begin with what is in the topic already.

    Raises:
        BrokerUnavailable: No answer at the start.
        TopicMismatch: There is no such topic.
    """
    topic = settings.topics.recommendations
    records = follow_topic(settings.kafka, topic, from_start=from_start)

    hint = "" if from_start else " (--from-start shows what is there)"
    _log.info("waiting for lists on %s%s", topic, hint)
    return (
        one
        for one in map(_decode, records)
        if one is not None and (not users or one.user_id in users)
    )


def _decode(record: Record) -> Shown | None:
    """Return what a record says; None for one that is no recommendation."""
    if record.value is None:
        return None if record.key is None else Withdrawal(record.key.decode(errors="replace"))
    try:
        return msgspec.json.decode(record.value, type=Recommendation)
    except (ValueError, RecursionError) as exc:  # as above
        _log.warning("%s: expected a recommendation: %s", place_of(record), exc)
        return None


def show(
    recommendations: Iterable[Shown],
    titles: Mapping[str, str],
    *,
    console: Console,
    count: int | None,
) -> None:
    """Show recommendations: a live table on a terminal, else one plain line each.

    Args:
        recommendations: They may come without end, withdrawals among them.
        titles: Item id -> title; ids stand in for what is missing.
        console: Where to.
        count: Stop after so many recommendations; None: never.
    """
    limited = _limited(recommendations, count)
    if not console.is_terminal:
        for one in limited:
            console.out(_line(one, titles), highlight=False)
        return
    newest: deque[Shown] = deque(maxlen=TABLE_ROWS)
    with Live(console=console, auto_refresh=True, refresh_per_second=5) as live:
        for one in limited:
            newest.appendleft(one)
            live.update(_table(newest, titles))


def _limited(shown: Iterable[Shown], count: int | None) -> Iterator[Shown]:
    """Yield up to the last of so many recommendations."""
    if count == 0:
        return
    seen = 0
    for one in shown:
        yield one
        seen += isinstance(one, Recommendation)
        if seen == count:
            return


def _line(one: Shown, titles: Mapping[str, str]) -> str:
    user = printable(one.user_id)
    if isinstance(one, Withdrawal):
        return f"{user}: {WITHDRAWN}"
    items = _items(one, titles, len(one.items))
    return f"{user} (event {one.history_length}, {_source(one)}): {items}"


def _table(newest: Iterable[Shown], titles: Mapping[str, str]) -> Table:
    table = Table("user", "events", "by", "recommended", expand=True)
    for one in newest:
        cells = (printable(one.user_id), "", "", WITHDRAWN)
        if isinstance(one, Recommendation):
            items = _items(one, titles, TABLE_ITEMS)
            cells = (cells[0], str(one.history_length), _source(one), items)
        table.add_row(*map(Text, cells))  # as it is: brackets in a title are no markup
    return table


def _source(recommendation: Recommendation) -> str:
    version = f" {recommendation.model_version}" if recommendation.model_version else ""
    return printable(recommendation.source) + version


def _items(recommendation: Recommendation, titles: Mapping[str, str], limit: int) -> str:
    shown = recommendation.items[:limit]
    return " | ".join(printable(titles.get(item.item_id, item.item_id)) for item in shown)
