"""`lrurec topics`: create or check the topics."""

from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from pipeline.json_report import write_json_report
from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Create or check the topics; `check` exits with 1 where a worker could not run on them."""

    action: tyro.conf.Positional[Literal["create", "check"]]
    """create: make those that are missing, alter none. check: tell what differs."""

    json: Path | None = None
    """File to write the result to: topics with their partitions, created, differences."""

    settings: SettingsFlags = field(default_factory=Settings)


def run(command: Command) -> int:
    """Do it; 0, or 1 where `check` finds what keeps a worker from running."""
    from pipeline.cluster import topics  # a Kafka client: only for those who run

    settings = command.settings
    created = topics.create_topics(settings) if command.action == "create" else []
    existing = topics.existing_topics(settings)
    differences = topics.check_topics(settings)
    for name, partitions in existing.items():
        print(f"{'created' if name in created else 'exists '}  {partitions:3} partitions  {name}")
    for difference in differences:
        print(f"{'WRONG' if difference.fatal else 'note'}: {difference}")
    write_json_report(
        command.json,
        {
            "topics": existing,
            "created": created,
            "differences": [asdict(difference) for difference in differences],
        },
    )
    return int(any(difference.fatal for difference in differences))
