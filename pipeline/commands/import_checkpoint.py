"""`lrurec import-checkpoint`: a release from a checkpoint of the published code."""

import hashlib
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from models.manifest import MAX_VERSION
from pipeline.errors import DataFileInvalid
from pipeline.json_report import write_json_report
from pipeline.setting_checks import check
from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Make a release of a checkpoint that the LRURec authors' code wrote; needs no Kafka.

    The length of its training windows, which the checkpoint does not tell, is model.max-length.
    """

    pth: tyro.conf.Positional[Path]
    """The checkpoint: a PyTorch file with the key model_state_dict."""

    items: Path
    """The item ids in the order of the checkpoint's rows: one a line, or a table (csv, tsv) whose
    last column they are and whose first numbers the rows from 1; .gz."""

    output: Path
    """Folder of releases; the release goes into its number in it."""

    version: int | None = None
    """Its number, none that was announced already; None: the next free one in that folder."""

    json: Path | None = None
    """File to write the result to: version, path, digests, weights_id, model."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        is_version = self.version is None or 0 < self.version <= MAX_VERSION
        check(is_version, "--version", f"from 1 to {MAX_VERSION}", self.version)


def run(command: Command) -> int:
    """Write the release; 0."""
    from dataclasses import asdict  # here and below: only for those who run

    from models.authors import import_authors_checkpoint
    from models.release import write_release
    from models.vocabulary import Vocabulary
    from pipeline.files.items import read_item_ids
    from pipeline.training.folder import release_versions

    recommender = import_authors_checkpoint(
        command.pth, max_length=command.settings.model.max_length
    )
    item_ids = read_item_ids(command.items)
    n_items = recommender.config.n_items
    if len(item_ids) != n_items:
        msg = (
            f"{command.items}: expected {n_items} items, as many as {command.pth} has, "
            f"got {len(item_ids)}"
        )
        raise DataFileInvalid(msg)
    release = write_release(
        command.output,
        version=command.version or max(release_versions(command.output), default=0) + 1,
        recommender=recommender,
        # The checkpoint does not tell how often an item occurred.
        vocabulary=Vocabulary(item_ids, [0] * n_items),
        metrics={},
        training={
            "imported": command.pth.name,
            "imported_sha256": hashlib.sha256(command.pth.read_bytes()).hexdigest(),
        },
    )
    print(f"release {release.version} in {release.path}: {n_items} items")
    write_json_report(
        command.json,
        {
            "version": release.version,
            "path": release.path,
            "digests": {**release.files, "manifest.json": release.manifest_sha256},
            "weights_id": release.weights_id,
            "model": asdict(release.config),
        },
    )
    return 0
