"""The faults of Faust that the engine works around, and the versions that it was tested with.

Each fault: what stock does, where (faust-streaming 0.15.3, aiokafka 0.14.0), and what answers it
here.
"""

from dataclasses import dataclass
from importlib.metadata import version

TESTED = {"faust-streaming": ("0.15.3",), "aiokafka": ("0.14.0",), "mode-streaming": ("0.7.1",)}


@dataclass(frozen=True)
class Fault:
    """One fault of stock Faust or aiokafka.

    Attributes:
        what: What goes wrong, and where.
        answer: What replaces it.
    """

    what: str
    answer: str


FAULTS = {
    "holes-after-rebalance": Fault(
        "tables/recovery.py resumes the source partitions before it seeks them and then empties "
        "every queue (#596): a stale fetch "
        "moves the read offset, the re-read records are dropped silently and the hole is booked "
        "as processed.",
        "restore.Restore: seek with nothing in flight, then flow; transport.Consumer.getmany "
        "checks that chunks follow each other.",
    ),
    "live-active-set": Fault(
        "transport/consumer.py passes a live set of partitions to aiokafka, which reads an "
        "emptied one as 'all' and drains "
        "paused partitions; the records are dropped.",
        "chunks.fetch_chunks asks the set itself.",
    ),
    "gap-commit": Fault(
        "transport/consumer.py books gaps as acknowledged.",
        "transport.Consumer._add_gap does nothing.",
    ),
    "commit-past-unacked": Fault(
        "transport/consumer.py commits past a message in flight (#606).",
        "transport.Consumer._new_offset commits the acknowledged prefix of chunks only.",
    ),
    "commit-behind-commit": Fault(
        "A commit that finds another one running returns without having committed anything.",
        "transport.Consumer.wait_empty commits twice.",
    ),
    "zombie-writes": Fault(
        "A worker that lost its partitions can still write their changelog.",
        "partitions.Checkpointer.fence: a transactional id per partition.",
    ),
    "stop-in-rebalance": Fault(
        "A stop during a rebalance closes the client while the other thread still waits for it, "
        "for ever.",
        "app.EngineApp._on_rebalance_when_stopped, transport.Consumer._in_main_loop, and a "
        "deadline.",
    ),
    "flush-gives-up": Fault(
        "ProducerBuffer.flush gives up after 100 ms with records unsent.",
        "Every output is confirmed before its chunk is acknowledged; transport.Producer.flush "
        "does nothing.",
    ),
    "take-loses": Fault(
        "An exception in the body of take() acknowledges the batch and everything behind it.",
        "stream.StreamService: nothing escapes; an unexpected error ends the process.",
    ),
    "silent-reset": Fault(
        "aiokafka's fetcher answers a position outside of the log by beginning anew at the log's "
        "start.",
        "transport.ConsumerThread.require_readable, at every assignment and wherever chunks do "
        "not follow each other.",
    ),
    "markers-uncommitted": Fault(
        "Control records and aborted ones are never delivered, so their offsets are not committed; "
        "deleted, they look like records that nobody read.",
        "chunks.take_chunks makes a chunk of them too.",
    ),
    "header-names": Fault(
        "aiokafka reads no batch with a header name that is no UTF-8.",
        "pipeline.cluster.header_names reads it.",
    ),
    "neither-key-nor-value": Fault(
        "AIOKafkaProducer.send refuses a record with neither key nor value.",
        "partitions.send_dead_letters builds its batches itself.",
    ),
    "one-name-twice": Fault(
        "aiokafka sends no instance id with heartbeats and commits: two members of one name "
        "replace each other for ever.",
        "restore.Restore ends a worker that is given its own generation again.",
    ),
    "crash-commits": Fault(
        "A part of Faust that crashes takes the app down over a stop that acknowledges and "
        "commits, and pages of log.",
        "app.EngineApp._crash ends the process.",
    ),
    "second-of-sleep": Fault(
        "The consumer sleeps a second when no partition is active, the table manager one at start.",
        "transport.Consumer._wait_next_records, restore.TableManager.on_start.",
    ),
}


def untested_versions() -> list[str]:
    """Return one line for each installed package whose version the engine was not tested with."""
    lines = []
    for name, tested in TESTED.items():
        installed = version(name)
        if installed not in tested:
            lines.append(f"{name} {installed} is installed, tested: {', '.join(tested)}")
    return lines
