"""Plays a scenario of workers that join, leave, die and freeze under load, and judges it.

    python -m tests.chaos [SCENARIO] [--minutes M] [--seed S] [--worker stock] [--json FILE]

A seed decides the steps; when a worker reaches them is up to the machine. In the end those who are
left catch up, and every state, offset, dead letter and recommendation is held against the log.
A failure prints the command that plays the same steps, and keeps all logs.
"""

import argparse
import importlib
import logging
import random
import shutil
import sys
import tempfile
from datetime import UTC, datetime
from pathlib import Path

from tests.benchmarks.report import write_json
from tests.chaos.driver import EVENTS_PER_S, Run
from tests.chaos.kinds import Kind, Ours
from tests.chaos.report import HEADING
from tests.chaos.scenarios import SCENARIOS


def kind_of(name: str) -> Kind:
    """Return the kind of worker; stock Faust is only imported where it is wanted."""
    if name == "ours":
        return Ours()
    stock: Kind = importlib.import_module("tests.benchmarks.stock_faust.kind").Stock()
    return stock


def main() -> int:
    parser = argparse.ArgumentParser(
        prog="python -m tests.chaos",
        description=__doc__,
        formatter_class=argparse.RawDescriptionHelpFormatter,
        epilog="scenarios:\n" + "\n".join(f"  {n}: {s.what}" for n, s in SCENARIOS.items()),
    )
    parser.add_argument("scenario", nargs="?", choices=SCENARIOS, default="storm")
    parser.add_argument("--minutes", type=float, help="rounds are played until then, at least one")
    parser.add_argument("--seed", type=int, default=random.SystemRandom().randrange(10_000))
    parser.add_argument("--worker", choices=["ours", "stock"], default="ours")
    parser.add_argument("--rate", type=int, default=EVENTS_PER_S, help="events a second")
    parser.add_argument("--json", type=Path, help="write the outcome there")
    parser.add_argument("--keep", action="store_true", help="keep the folder with all logs")
    options = parser.parse_args()
    # The producer's client says, many times, that Kafka is away.
    logging.getLogger("aiokafka").setLevel(logging.CRITICAL)
    folder = Path(tempfile.mkdtemp(prefix="lrurec-chaos-"))
    kind = kind_of(options.worker)
    run = Run(
        options.scenario,
        kind,
        folder,
        seed=options.seed,
        minutes=options.minutes,
        events_per_s=options.rate,
        say=lambda text: print(f"{datetime.now(UTC):%T.%f} {text}", flush=True),
    )
    print(f"{run.outcome.replay}\nlogs below {folder}", flush=True)
    try:
        outcome = run.play()
    except BaseException:
        print(f"the run itself failed; logs below {folder}; again: {run.outcome.replay}")
        raise
    write_json(options.json, outcome.to_json())
    assert outcome.judgement is not None
    assert outcome.order is not None
    for what in outcome.order.first:
        print(f"older list after a newer one: {what}")
    done = ", ".join(f"{count} {what}" for what, count in outcome.done.items())
    ended = ", ".join(f"{count} with {code}" for code, count in sorted(outcome.exits.items()))
    print(f"done: {done}; workers that ended and had not been killed, by exit code: {ended}")
    for what in (*outcome.hangs, *outcome.odd_exits, *outcome.judgement.wrong):
        print(f"  {what}")
    print(f"\n{HEADING}\n{outcome.line()}\n")
    if not outcome.holds:
        print(f"something did not hold; logs below {folder}; again: {outcome.replay}")
    else:
        print("everything held")
        if not options.keep:
            shutil.rmtree(folder)
    return int(kind.keeps_promises and not outcome.holds)


if __name__ == "__main__":
    sys.exit(main())
