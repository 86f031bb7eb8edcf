"""Recommendations as they leave, for people: with titles, one line each or as a live table."""

import logging
from collections import deque
from collections.abc import Collection, Iterable, Iterator, Mapping
from itertools import islice
from pathlib import Path

import msgspec
from rich.console import Console
from rich.live import Live
from rich.table import Table
from rich.text import Text

from pipeline.cluster.clients import Record, follow_topic, read_partitions
from pipeline.data_files import read_titles
from pipeline.errors import TopicMismatch
from pipeline.printable import printable
from pipeline.settings import Settings
from pipeline.worker.catalogue import CatalogueItem
from pipeline.worker.wire import Recommendation

_log = logging.getLogger(__name__)

TABLE_ITEMS = 3
TABLE_ROWS = 20


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
) -> Iterator[Recommendation]:
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

    return (
        recommendation
        for recommendation in map(_decode, records)
        if recommendation is not None and (not users or recommendation.user_id in users)
    )


def _decode(record: Record) -> Recommendation | None:
    """Return what a record says; None for a deleted user's, or one that is no recommendation."""
    if record.value is None:
        return None
    try:
        return msgspec.json.decode(record.value, type=Recommendation)
    except (ValueError, RecursionError) as exc:  # as above
        where = f"{record.topic}, partition {record.partition}, offset {record.offset}"
        _log.warning("%s: expected a recommendation: %s", where, exc)
        return None


def show(
    recommendations: Iterable[Recommendation],
    titles: Mapping[str, str],
    *,
    console: Console,
    count: int | None,
) -> None:
    """Show recommendations: a live table on a terminal, else one plain line each.

    Args:
        recommendations: They may come without end.
        titles: Item id -> title; ids stand in for what is missing.
        console: Where to.
        count: Stop after so many; None: never.
    """
    limited = islice(recommendations, count)
    if not console.is_terminal:
        for recommendation in limited:
            console.out(_line(recommendation, titles), highlight=False)
        return
    newest: deque[Recommendation] = deque(maxlen=TABLE_ROWS)
    with Live(console=console, auto_refresh=True, refresh_per_second=5) as live:
        for recommendation in limited:
            newest.appendleft(recommendation)
            live.update(_table(newest, titles))


def _line(recommendation: Recommendation, titles: Mapping[str, str]) -> str:
    return (
        f"{printable(recommendation.user_id)} (event {recommendation.history_length}, "
        f"{_source(recommendation)}): {_items(recommendation, titles, len(recommendation.items))}"
    )


def _table(newest: Iterable[Recommendation], titles: Mapping[str, str]) -> Table:
    table = Table("user", "events", "by", "recommended", expand=True)
    for recommendation in newest:
        cells = (
            printable(recommendation.user_id),
            str(recommendation.history_length),
            _source(recommendation),
            _items(recommendation, titles, TABLE_ITEMS),
        )
        table.add_row(*map(Text, cells))  # as it is: brackets in a title are no markup
    return table


def _source(recommendation: Recommendation) -> str:
    version = f" {recommendation.model_version}" if recommendation.model_version else ""
    return printable(recommendation.source) + version


def _items(recommendation: Recommendation, titles: Mapping[str, str], limit: int) -> str:
    shown = recommendation.items[:limit]
    return " | ".join(printable(titles.get(item.item_id, item.item_id)) for item in shown)
