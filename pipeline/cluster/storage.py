"""The folder of the local Kafka: its configuration, and storage that is formatted once."""

import base64
import json
import shutil
import subprocess
import tempfile
import uuid
from pathlib import Path

from pipeline.errors import BrokerUnavailable, SettingsInvalid

TAIL_LINES = 8
# One single-character group id for each partition of __consumer_offsets: Kafka takes the code of
# the character modulo the number of partitions.
PROBE_GROUPS = ("0", "1", "2", "3")

PROPERTIES = """\
# Written at every start of `lrurec broker start`: changes here are lost.
process.roles=broker,controller
node.id=1
listeners=PLAINTEXT://{host}:{port},CONTROLLER://127.0.0.1:{controller_port}
advertised.listeners=PLAINTEXT://{host}:{port}
listener.security.protocol.map=PLAINTEXT:PLAINTEXT,CONTROLLER:PLAINTEXT
controller.listener.names=CONTROLLER
controller.quorum.voters=1@127.0.0.1:{controller_port}
log.dirs={log_dir}
num.network.threads=2
num.io.threads=4

# Topics are made by `lrurec topics create`; a misspelt name must not make one.
auto.create.topics.enable=false
num.partitions=4
default.replication.factor=1
min.insync.replicas=1
# Room for values of 1 MB with key and headers.
message.max.bytes=2097152
# The interactions are what the trainer learns from, and their timestamps may be years old.
log.retention.ms=-1
log.segment.bytes=67108864
# Each partition maps two index files of this size: plenty for a segment of 64 MiB.
log.index.size.max.bytes=1048576
log.segment.delete.delay.ms=1000
# The default, 128 MiB, would be a quarter of the heap.
log.cleaner.dedupe.buffer.size=33554432

# Few partitions: they are made when the first group and the first transaction come.
offsets.topic.num.partitions={probe_groups}
offsets.topic.replication.factor=1
transaction.state.log.num.partitions=4
transaction.state.log.replication.factor=1
transaction.state.log.min.isr=1
share.coordinator.state.topic.num.partitions=1
share.coordinator.state.topic.replication.factor=1
share.coordinator.state.topic.min.isr=1
group.initial.rebalance.delay.ms=0
# The default, 6 s, forbids workers that notice a death sooner.
group.min.session.timeout.ms=1000
# After a kill the old registration has to expire before the broker may register: 9 s by default.
broker.session.timeout.ms=4000
broker.heartbeat.interval.ms=500
transaction.abort.timed.out.transaction.cleanup.interval.ms=1000
"""


def write_properties(data_dir: Path, *, host: str, port: int, controller_port: int) -> Path:
    """Write `server.properties` and return its path.

    Args:
        data_dir: Folder of the broker, absolute.
        host: Address that clients reach it at.
        port: Port for clients.
        controller_port: Port on loopback that only the broker itself uses; may differ every time.

    Raises:
        SettingsInvalid: Kafka cannot use this folder.
    """
    if "," in str(data_dir) or not str(data_dir).isprintable():
        msg = (
            f"broker.data_dir must be a path of printable characters without a comma (Kafka splits "
            f"there), got {str(data_dir)!r}"
        )
        raise SettingsInvalid(msg)
    path = data_dir / "server.properties"
    path.write_text(
        PROPERTIES.format(
            host=host,
            port=port,
            controller_port=controller_port,
            log_dir=_escaped(data_dir / "log"),
            probe_groups=len(PROBE_GROUPS),
        ),
        encoding="ascii",
    )
    return path


def format_new_storage(data_dir: Path, java: Path, class_path: str) -> None:
    """Make `log/` where there is none, by a rename: one that exists is whole.

    Raises:
        BrokerUnavailable: Java does not run, or Kafka's tool failed; the message has its words.
    """
    for leftover in data_dir.glob("formatting-*"):
        shutil.rmtree(leftover, ignore_errors=True)
    if (data_dir / "log").exists():
        return
    work_dir = Path(tempfile.mkdtemp(prefix="formatting-", dir=data_dir))
    properties = (data_dir / "server.properties").read_text(encoding="ascii")
    new_properties = work_dir / "server.properties"
    new_properties.write_text(
        properties.replace(_escaped(data_dir / "log"), _escaped(work_dir / "log")),
        encoding="ascii",
    )
    cluster_id = base64.urlsafe_b64encode(uuid.uuid4().bytes).decode().rstrip("=")
    command = [str(java), "-Xmx128m", "-XX:+UseSerialGC", "-XX:TieredStopAtLevel=1"]
    command += ["-cp", class_path, "kafka.tools.StorageTool", "format"]
    # In one argument: an id may begin with a dash.
    command += [f"--cluster-id={cluster_id}", "--config", str(new_properties)]
    try:
        done = subprocess.run(command, capture_output=True, text=True, check=False)
    except OSError as exc:
        msg = f"cannot run Java for the local Kafka: {java}: {exc}; name another by --broker.java"
        raise BrokerUnavailable(msg) from exc
    if done.returncode != 0:
        tail = " | ".join((done.stdout + done.stderr).strip().splitlines()[-TAIL_LINES:])
        msg = f"cannot format storage for Kafka in {data_dir}: exit {done.returncode}: {tail}"
        raise BrokerUnavailable(msg)
    (work_dir / "log").rename(data_dir / "log")
    shutil.rmtree(work_dir)


def _escaped(path: Path) -> str:
    """Return a path as the value of a property in a file that Java reads.

    It is read as Latin-1, with escapes: for what is printable, those of JSON.
    """
    return json.dumps(str(path))[1:-1]
