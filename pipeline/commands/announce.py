"""`lrurec announce`: make workers serve a release that is there already."""

from dataclasses import dataclass, field
from pathlib import Path

import tyro

from pipeline.json_report import write_json_report
from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Announce a release: an older one to go back to, an imported one, or one that was refused."""

    release: tyro.conf.Positional[Path]
    """The release's folder, as the workers see it."""

    json: Path | None = None
    """File to write the announcement to."""

    settings: SettingsFlags = field(default_factory=Settings)


def run(command: Command) -> int:
    """Verify the release's digests and announce it."""
    from models.release import read_release  # torch: only for those who run
    from pipeline.worker.releases import announce, require_own_number

    release = read_release(command.release)
    require_own_number(command.settings, release)
    announcement = announce(command.settings, release)
    print(f"release {release.version} at {announcement.location} is announced")
    write_json_report(
        command.json,
        {
            "version": announcement.version,
            "location": announcement.location,
            "manifest_sha256": announcement.manifest_sha256,
        },
    )
    return 0
