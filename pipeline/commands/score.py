"""`lrurec score`: one answer offline, by scan and by steps."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.json_report import write_json_report
from pipeline.printable import printable
from pipeline.setting_checks import check
from pipeline.settings import Names, Settings, SettingsFlags, Switch


@dataclass(frozen=True, kw_only=True)
class Command:
    """What a release recommends after a history; needs no Kafka.

    Computed by one scan over the history and again by single steps, as workers do. With
    recommend.exclude-seen the items that a worker would remember are left out.
    """

    release: Path
    """Folder of the release."""

    history: Names = ()
    """Item ids, oldest first; those that the release does not know are passed over. Empty: what a
    user without history gets."""

    top: int | None = None
    """How many items; None: as many as in a recommendation (recommend.top-k)."""

    all: Switch = False
    """All items."""

    json: Path | None = None
    """File to write the result to: items with scores, unknown items, max_abs_diff."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        check(self.top is None or self.top > 0, "--top", "over 0", self.top)


def run(command: Command) -> int:
    """Score and print; 0."""
    from rich.table import Table  # here and below: only for those who run
    from rich.text import Text

    from models.release import read_release
    from pipeline.console import CommandConsole
    from pipeline.training.offline_score import score_history

    release, recommend = read_release(command.release), command.settings.recommend
    ring = recommend.ring or release.config.max_length
    answer = score_history(
        release,
        command.history,
        top=None if command.all else command.top or recommend.top_k,
        exclude_last=ring if recommend.exclude_seen else 0,
    )
    write_json_report(
        command.json,
        {
            "version": release.version,
            "source": answer.source,
            "history_used": answer.used,
            "unknown": answer.unknown,
            "items": [{"item_id": item_id, "score": score} for item_id, score in answer.items],
            "max_abs_diff": answer.max_difference,
        },
    )
    for item_id in answer.unknown:
        print(f"unknown to release {release.version}, passed over: {printable(item_id)}")
    table = Table("", "item", "score")
    for place, (item_id, score) in enumerate(answer.items, start=1):
        table.add_row(str(place), Text(printable(item_id)), f"{score:.6f}")
    CommandConsole().print(table)
    print(
        f"release {release.version}, {answer.source}, {answer.used} items of the history; "
        f"by scan and by steps all scores agree within {answer.max_difference:.2e}"
    )
    return 0
