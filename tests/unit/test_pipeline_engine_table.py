"""What Faust's table shows of the rows."""

from pathlib import Path

import pytest

from pipeline.cluster.topics import TABLE_NAME
from tests.faust_apps import OffsetProcessor, engine_app
from tests.kafka import unique_settings


def test_the_table_reads_the_rows_of_open_partitions_and_writes_none() -> None:
    """Whatever wrote past a checkpoint would be in no changelog."""
    settings = unique_settings("127.0.0.1:1", Path("never-made"), partitions=2)
    app = engine_app(settings, OffsetProcessor())
    store, rows = app.stream_service.store, app.tables[TABLE_NAME].data
    for partition in (0, 1):
        store.open(partition)
        store.write(partition, [(b"user-%d" % partition, b"row")], position=4)

    assert dict(rows.items()) == {b"user-0": b"row", b"user-1": b"row"}
    assert rows[b"user-1"] == b"row"
    assert (b"user-2" in rows, len(rows)) == (False, 2)
    with pytest.raises(TypeError, match="written by checkpoints only"):
        rows[b"user-2"] = b"row"
    with pytest.raises(TypeError, match="written by checkpoints only"):
        rows.clear()
