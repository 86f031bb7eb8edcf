"""`lrurec users`: forget a user, or block items for one."""

import time
from dataclasses import asdict, dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Literal

import tyro

from pipeline.errors import SettingsInvalid
from pipeline.json_report import write_json_report
from pipeline.printable import printable
from pipeline.settings import Settings, SettingsFlags

if TYPE_CHECKING:
    from pipeline.users import UserFacts


@dataclass(frozen=True, kw_only=True)
class Command:
    """Say on the users topic what holds of a user; workers and trainers act on it."""

    action: tyro.conf.Positional[Literal["forget", "block", "unblock", "show"]]
    """forget: the user's events from before a time never happened. block: leave items out of the
    user's lists. unblock: leave them out no more. show: tell what holds."""

    user: Annotated[tyro.conf.Positional[str], tyro.conf.arg(metavar="USER")]
    """The user's id."""

    items: Annotated[
        tyro.conf.Positional[tuple[str, ...]], tyro.conf.arg(metavar="[ITEM ...]")
    ] = ()
    """Ids of the items to block or unblock."""

    before: str | None = None
    """Forget what is older: ISO 8601 (no zone: UTC) or milliseconds since 1970. None: now."""

    json: Path | None = None
    """File to write the result to: user, forget_before_ms, blocked_items, topic, records."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        takes_items = self.action in {"block", "unblock"}
        if takes_items != bool(self.items):
            msg = f"{self.action} takes {'at least one item' if takes_items else 'no items'}"
            raise SettingsInvalid(msg)
        if self.before is not None and self.action != "forget":
            msg = f"--before goes with forget, not with {self.action}"
            raise SettingsInvalid(msg)


def run(command: Command) -> int:
    """Do it, and tell what holds now."""
    from pipeline import users  # a Kafka client: only for those who run

    settings, user = command.settings, command.user
    max_bytes = settings.fields.max_id_bytes
    users.check_id("the user", user, max_bytes)
    for item in command.items:
        users.check_id("an item", item, max_bytes)
    match command.action:
        case "forget":
            now_ms = time.time_ns() // 1_000_000
            before = command.before
            before_ms = now_ms if before is None else users.parse_time_ms(before, now_ms)
            facts = users.forget(settings, user, before_ms)
        case "block":
            facts = users.block(settings, user, command.items)
        case "unblock":
            facts = users.unblock(settings, user, command.items)
        case "show":
            facts = users.read_user(settings, user)
    _tell(command, facts)
    return 0


def _tell(command: Command, facts: "UserFacts") -> None:
    from pipeline.users import format_time

    before_ms, blocked = facts.command.forget_before_ms, facts.command.blocked_ids
    forgotten = f"before {format_time(before_ms)} ({before_ms})" if before_ms else "nothing"
    print(f"user       {printable(facts.user)}")
    print(f"forgotten  {forgotten}")
    print(f"blocked    {printable(', '.join(blocked)) if blocked else 'nothing'}")
    topic, records = command.settings.topics.users, facts.records
    if command.action != "show":
        print(f"sent to    all {len(records)} partitions of {topic}")
    elif records:
        (record,) = records
        print(
            f"read at    {topic}, partition {record.partition}, offset {record.offset}, "
            f"of {format_time(record.timestamp_ms)}"
        )
    else:
        print(f"read at    {topic}, which does not name this user")
    write_json_report(
        command.json,
        {
            "user": facts.user,
            "forget_before_ms": before_ms,
            "blocked_items": blocked,
            "topic": topic,
            "records": [asdict(record) for record in records],
        },
    )
