"""`lrurec watch`: follow recommendations with titles."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.setting_checks import check
from pipeline.settings import Names, Settings, SettingsFlags, Switch


@dataclass(frozen=True, kw_only=True)
class Command:
    """Follow recommendations as they leave; until Ctrl-C, or so many."""

    items: Path | None = None
    """File of titles: csv or tsv with item,title; None: the titles of the items topic."""

    count: int | None = None
    """Stop after so many recommendations; None: never."""

    users: Names = ()
    """Only these users; empty: everyone."""

    from_start: Switch = False
    """Begin with the recommendations that are in the topic already."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        check((self.count or 0) >= 0, "--count", "at least 0", self.count)


def run(command: Command) -> int:
    """Follow: a live table on a terminal, else one line each."""
    from pipeline.console import CommandConsole  # here and below: only for those who run
    from pipeline.watch import follow_recommendations, load_titles, show

    recommendations = follow_recommendations(
        command.settings, users=command.users, from_start=command.from_start
    )
    titles = load_titles(command.settings, command.items)
    show(recommendations, titles, console=CommandConsole(), count=command.count)
    return 0
