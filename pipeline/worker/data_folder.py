"""What a worker's data folder belongs to, so that its states are never taken for another topic's.

States name offsets of the topic that they reflect. Of a topic that was deleted and made anew, whose
offsets begin again, every event would seem to be applied already.
"""

import os
from pathlib import Path

import msgspec

from pipeline.cluster.topics import may_be_same, topic_id
from pipeline.errors import TopicMismatch
from pipeline.settings import Settings
from state.errors import StateError


class Owner(msgspec.Struct, frozen=True, kw_only=True):
    """Content of the file `owner.json` in the folder."""

    app_id: str
    topic: str
    topic_id: str


def claim_data_folder(settings: Settings) -> None:
    """Note in the data folder what its states reflect; called by who holds the folder.

    Raises:
        BrokerUnavailable: No answer from Kafka.
        StateError: The folder cannot be read or written.
        TopicMismatch: The folder belongs to another topic or application.
    """
    name, folder = settings.topics.interactions, settings.worker.data_dir
    found_id = topic_id(settings.kafka, name)
    owner = Owner(app_id=settings.worker.app_id, topic=name, topic_id=found_id)
    path = folder / "owner.json"
    try:
        if not path.exists():
            _write(path, msgspec.json.encode(owner))
            return
        found = msgspec.json.decode(path.read_bytes(), type=Owner)
    except OSError as error:
        msg = (
            f"{path}: expected to read or note what the folder belongs to, got {error}; see to the "
            f"rights of this user there and to room on the disk, then start again"
        )
        raise StateError(msg) from error
    except ValueError as error:
        msg = f"{path}: expected what the folder belongs to, got {error}; remove the folder"
        raise TopicMismatch(msg) from error
    # The name too: of an older cluster, without ids, it is all that tells topics apart.
    is_same_topic = found.topic == name and may_be_same(found.topic_id, owner.topic_id)
    if not is_same_topic or found.app_id != owner.app_id:
        msg = (
            f"{folder}: its states are of {_name(found)}, not of {_name(owner)}: give "
            f"--worker.data-dir another folder; where the topic was made anew, begin anew with "
            f"another --worker.app-id too"
        )
        raise TopicMismatch(msg)


def _name(owner: Owner) -> str:
    return f"topic {owner.topic} (id {owner.topic_id}) by application {owner.app_id}"


def _write(path: Path, content: bytes) -> None:
    written = path.with_suffix(".new")
    written.write_bytes(content)
    os.replace(written, path)
