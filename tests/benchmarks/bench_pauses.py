"""How long partitions stand still when workers come, go and die, under a load without rest.

    python -m tests.benchmarks.bench_pauses [--rounds N] [--rate N] [--users N] [--json FILE]

Real workers on 4 partitions, 400 events a second, each of another user, one on every partition
every 10 ms; the changelog holds a row for every user. The pause of a partition is the longest that
one of its events waited until its recommendation arrived at Kafka, by Kafka's clock; what it waits
without a rebalance is in it. A partition has moved when another worker has it afterwards, or its
own was started again; the others were kept. The figures are the worst of the partitions in a round.

- joins: a second worker starts on an empty folder; again on the folder that it left behind
- leaves: it is sent SIGTERM
- killed: it is sent SIGKILL; the session timeout is the default
- restarts: it is sent SIGTERM and started again; both have fixed names and a session of 30 s

A join begins when the worker has loaded everything and turns to Kafka. Loading costs seconds of
CPU, which the others lack where there are no more cores; what an event waits meanwhile stands
apart.
"""

import argparse
import itertools
import signal
import statistics
import tempfile
import time
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from pipeline.cluster.broker import running_broker
from pipeline.settings import BrokerSettings, KafkaSettings, Settings
from tests.benchmarks.group import (
    Group,
    announce_release,
    bundled_items,
    group_of,
    settings_of_run,
)
from tests.benchmarks.load import (
    Delays,
    Wait,
    send_all,
    stamp_arrivals,
    steady_load,
    users_in_turn,
)
from tests.benchmarks.report import machine, spread, write_json

PARTITIONS = 4
STEADY_S = 3.0  # before what is done, for comparison, and after it
BEFORE_S = 0.5  # what was sent just before may wait, too
STATIC_SESSION_S = 30.0
TARGETS_S = {  # of partitions that move
    "joins, empty folder": 1.5,
    "joins, its old folder": 1.5,
    "leaves (SIGTERM)": 1.5,
    "killed (SIGKILL)": KafkaSettings().session_timeout_s + 1,
}
KEPT_TARGET_S = 1.0


@dataclass(kw_only=True)
class Pauses:
    """What one change did.

    Attributes:
        moved: The longest wait of an event, by partition that moved, and when it was sent, counted
            from the beginning of the change.
        kept: The same of those that stayed.
        loading_s: The longest wait of any event while a worker that joins only loaded.
        steady_s: The longest wait of any event in the seconds before all of that.
        settled_s: From the beginning until everything flowed.
        log: What the workers said, by seconds from the beginning.
    """

    moved: dict[int, Wait]
    kept: dict[int, Wait]
    loading_s: float
    steady_s: float
    settled_s: float
    log: list[str]

    @property
    def moved_s(self) -> float:
        """The longest wait on the partitions that moved."""
        return max((wait.delay_s for wait in self.moved.values()), default=0.0)

    @property
    def kept_s(self) -> float:
        """The longest wait on those that stayed."""
        return max((wait.delay_s for wait in self.kept.values()), default=0.0)


def observe(
    group: Group,
    delays: Delays,
    change: Callable[[], object],
    *,
    joins: str | None = None,
    restarts: str | None = None,
) -> Pauses:
    """Make a change and see what it does to each partition.

    Args:
        group: The workers.
        delays: Of their events.
        change: Returns when it is done; what follows from it is waited for.
        joins: Who comes by it.
        restarts: Whose partitions count as moved though they stay.
    """
    before = group.owners()
    time.sleep(STEADY_S)
    started_s = time.time()
    change()
    group.wait_until_all_flow()
    settled_s = time.time()
    time.sleep(STEADY_S)
    ended_s = time.time()
    delays.catch_up()
    began_s = started_s if joins is None else group.spoke_at_s(joins)
    after = group.owners()
    worst = delays.worst(began_s - BEFORE_S, ended_s)
    moved = {p for p in after if after[p] != before[p] or after[p] == restarts}
    waits = {p: Wait(wait.delay_s, wait.sent_s - began_s) for p, wait in sorted(worst.items())}

    def longest_s(since_s: float, until_s: float) -> float:
        waits = delays.worst(since_s, until_s).values()
        return max((wait.delay_s for wait in waits), default=0.0)

    return Pauses(
        moved={p: wait for p, wait in waits.items() if p in moved},
        kept={p: wait for p, wait in waits.items() if p not in moved},
        loading_s=longest_s(started_s - BEFORE_S, began_s - BEFORE_S),
        steady_s=longest_s(started_s - STEADY_S, started_s - BEFORE_S),
        settled_s=settled_s - began_s,
        log=group.log_lines(began_s),
    )


def prepare(settings: Settings, users: int) -> Delays:
    """Send an event of every user, for workers that are yet to start."""
    stamp_arrivals(settings)
    items = bundled_items()
    clicks = users_in_turn(settings.topics.partitions, users, items)
    delays = Delays(settings)
    send_all(settings, itertools.islice(clicks, users))
    return delays


def comes_and_goes(settings: Settings, rate: float, users: int) -> dict[str, Pauses]:
    """A second worker joins, leaves, joins again, and dies."""
    delays, found = prepare(settings, users), {}
    with group_of(settings, ["first"]) as group:
        delays.catch_up()
        with steady_load(settings, rate, users_in_turn, users, bundled_items()):
            for what, change in {
                "joins, empty folder": lambda: group.start("second"),
                "leaves (SIGTERM)": lambda: group.end("second", signal.SIGTERM),
                "joins, its old folder": lambda: group.start("second"),
                "killed (SIGKILL)": lambda: group.end("second", signal.SIGKILL),
            }.items():
                joins = "second" if what.startswith("joins") else None
                found[what] = observe(group, delays, change, joins=joins)
    return found


def restarts(settings: Settings, rate: float, users: int) -> dict[str, Pauses]:
    """One of two workers with fixed names restarts."""
    delays = prepare(settings, users)
    with group_of(settings, ["first", "second"], static=True) as group:

        def restart() -> None:
            group.end("second", signal.SIGTERM)
            group.start("second")

        delays.catch_up()
        with steady_load(settings, rate, users_in_turn, users, bundled_items()):
            found = observe(group, delays, restart, restarts="second")
    return {"restarts under its name": found}


def summary(rounds: Mapping[str, list[Pauses]]) -> dict[str, dict[str, Any]]:
    """Medians and worst values, beside the targets."""
    told = {}
    for what, pauses in rounds.items():
        moved, kept = [one.moved_s for one in pauses], [one.kept_s for one in pauses]
        target_s = TARGETS_S.get(what)
        told[what] = {
            "moved_s": {"median": statistics.median(moved), "worst": max(moved), "all": moved},
            "kept_s": {"median": statistics.median(kept), "worst": max(kept), "all": kept},
            "loading_s": max(one.loading_s for one in pauses),
            "steady_s": max(one.steady_s for one in pauses),
            "settled_s": statistics.median(one.settled_s for one in pauses),
            "moved_target_s": target_s,
            "holds": max(kept) <= KEPT_TARGET_S and (target_s is None or max(moved) <= target_s),
        }
    return told


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    parser.add_argument("--rounds", type=int, default=3)
    parser.add_argument("--rate", type=float, default=400.0, help="events a second")
    parser.add_argument("--users", type=int, default=20_000)
    parser.add_argument("--json", type=Path)
    options = parser.parse_args()
    rounds: dict[str, list[Pauses]] = {}
    with tempfile.TemporaryDirectory(prefix="lrurec-bench-") as name:
        folder = Path(name)
        with running_broker(BrokerSettings(data_dir=folder / "kafka", port=0)) as broker:
            kafka = KafkaSettings(bootstrap_servers=broker.address)
            static = KafkaSettings(
                bootstrap_servers=broker.address, session_timeout_s=STATIC_SESSION_S
            )
            for number in range(options.rounds):
                for run, by, at in (
                    (f"group-{number}", comes_and_goes, kafka),
                    (f"names-{number}", restarts, static),
                ):
                    settings = settings_of_run(at, run, folder, PARTITIONS)
                    if not rounds:
                        announce_release(settings, folder)
                    for what, pauses in by(settings, options.rate, options.users).items():
                        rounds.setdefault(what, []).append(pauses)
                        print(
                            f"round {number}, {what}: moved {sorted(pauses.moved)} "
                            f"{pauses.moved_s:.2f} s, kept {sorted(pauses.kept)} "
                            f"{pauses.kept_s:.2f} s",
                            flush=True,
                        )
                    told = summary(rounds)
                    figures = {
                        "session_timeout_s": kafka.session_timeout_s,
                        "static_session_timeout_s": STATIC_SESSION_S,
                        "heartbeat_interval_s": kafka.heartbeat_interval_s,
                        "rate": options.rate,
                        "users": options.users,
                        "scenarios": told,
                        "rounds": {w: [vars(one) for one in of] for w, of in rounds.items()},
                    }
                    write_json(options.json, figures)
    print(f"on {machine()}")
    for what, one in told.items():
        of_moved = TARGETS_S.get(what)
        aim = "no target" if of_moved is None else f"at most {of_moved:g}"
        print(what)
        print(f"  moved partitions  {spread(one['moved_s']['all'])} s ({aim})")
        print(f"  kept partitions   {spread(one['kept_s']['all'])} s (at most {KEPT_TARGET_S:g})")
        if one["loading_s"]:
            print(f"  while it loads    {one['loading_s']:.2f} s at most")
        print(f"  before that       {one['steady_s']:.2f} s at most")
        print(f"  all flow after    {one['settled_s']:.2f} s")
        print(f"  {'holds' if one['holds'] else 'MISSED'}")


if __name__ == "__main__":
    main()
