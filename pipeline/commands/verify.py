"""`lrurec verify`: hold every state against the log."""

from dataclasses import dataclass, field
from pathlib import Path

from pipeline.json_report import write_json_report
from pipeline.setting_checks import check
from pipeline.settings import Settings, SettingsFlags


@dataclass(frozen=True, kw_only=True)
class Command:
    """Prove from the topics alone that every promise held; exits with 1 where one did not.

    Needs no worker, and may run beside one. Give it the settings of the workers.
    """

    json: Path | None = None
    """File to write the result to."""

    sample: int | None = None
    """Compute states and lists anew for so many users only; None: for all. Facts of rows, offsets
    and recommendations are always checked for all."""

    settings: SettingsFlags = field(default_factory=Settings)

    def __post_init__(self) -> None:
        check((self.sample or 0) >= 0, "--sample", "at least 0", self.sample)


def run(command: Command) -> int:
    """Verify and print; 0 only if everything holds."""
    from pipeline.console import CommandConsole  # here and below: only for those who run
    from pipeline.verification.verify import verify
    from pipeline.verification.view import print_report

    with CommandConsole(stderr=True).status("") as status:
        report = verify(command.settings, sample=command.sample, on_stage=status.update)
    write_json_report(command.json, report.to_json())  # first: nobody may read what is printed
    print_report(report, CommandConsole())
    return 0 if report.holds else 1
