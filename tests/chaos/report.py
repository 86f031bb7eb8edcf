"""What a run showed."""

from collections import Counter
from dataclasses import asdict, dataclass, field
from typing import Any

from tests.chaos.kinds import Judgement, OutputOrder


@dataclass(kw_only=True)
class Outcome:
    """One run.

    Attributes:
        scenario: Its name.
        worker: The kind of worker.
        seed: Decided the steps.
        replay: The command that plays the same steps.
        done: How often each thing was done or happened.
        exits: How workers ended that nobody had killed, by code.
        odd_exits: Ends that should not have been, in words.
        hangs: Deadlines that passed, in words.
        sent: Records that were sent.
        recovery_s: From the end of the load until everything was committed.
        seconds: Length of the load.
        judgement: The states against the log.
        order: The recommendations.
    """

    scenario: str
    worker: str
    seed: int
    replay: str
    done: Counter[str] = field(default_factory=Counter)
    exits: Counter[int] = field(default_factory=Counter)
    odd_exits: list[str] = field(default_factory=list)
    hangs: list[str] = field(default_factory=list)
    sent: int = 0
    recovery_s: float = 0.0
    seconds: float = 0.0
    judgement: Judgement | None = None
    order: OutputOrder | None = None

    @property
    def holds(self) -> bool:
        """Whether nothing was lost, double, different or late, and every worker ended as it may."""
        found = self.judgement
        if found is None or self.hangs or self.odd_exits:
            return False
        return not (found.lost or found.double or found.different or found.wrong)

    def line(self) -> str:
        """Return the run as a row of the table in docs/chaos.md."""
        found, order = self.judgement, self.order
        assert found is not None
        assert order is not None
        regress = f"{order.regressing} ({order.worst_regress})" if order.regressing else "0"
        cells = [
            self.scenario,
            self.seed,
            f"{found.events:,}",
            found.lost,
            found.double,
            found.different,
            len(self.hangs),
            len(self.odd_exits),
            regress,
            f"{order.worst_pause_s:.1f}",
            f"{self.recovery_s:.1f}",
        ]
        return f"| {' | '.join(map(str, cells))} |"

    def to_json(self) -> dict[str, Any]:
        """Return what `--json` writes."""
        found, order = self.judgement, self.order
        return {
            "holds": self.holds,
            **vars(self),
            "judgement": None if found is None else asdict(found),
            "order": None if order is None else asdict(order),
        }


HEADING = """\
| scenario | seed | events | lost | double | states differing | hangs | odd exits \
| older lists after newer (by at most) | worst pause of a partition, s | caught up after, s |
| --- | --- | --- | --- | --- | --- | --- | --- | --- | --- | --- |"""
