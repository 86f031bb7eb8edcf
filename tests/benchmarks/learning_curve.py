"""How trainings went: validation Recall@10 and training loss over the steps, several in one plot.

    python -m tests.benchmarks.learning_curve [NAME=]RUN.json ... --plot FILE.svg
        [--reference NAME=VALUE ...]

A run is what `lrurec evaluate DATA --json RUN.json` writes. A reference, such as a published
Recall@10, is drawn as a dashed line. Prints for each run its best validation and its test.
"""

import argparse
import json
from pathlib import Path
from typing import Any

from tests.benchmarks.plot import Panel, write_lines
from tests.benchmarks.report import print_table

METRIC = "recall@10"


def read_run(argument: str) -> tuple[str, dict[str, Any]]:
    """Return name and report of `NAME=FILE`, or of a file, whose name it then is.

    Raises:
        ArgumentTypeError: The file is not the report of a training.
    """
    name, _, path = argument.rpartition("=")
    report = json.loads(Path(path).read_text())
    if not report.get("history"):
        msg = f"{path}: expected what lrurec evaluate --json writes of a training, got no history"
        raise argparse.ArgumentTypeError(msg)
    return name or Path(path).stem, report


def reference(argument: str) -> tuple[str, float]:
    """Return name and value of `NAME=VALUE`."""
    name, _, value = argument.rpartition("=")
    return name, float(value)


def main(words: list[str] | None = None) -> None:
    """Print the table and draw the plot."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("runs", nargs="+", metavar="[NAME=]RUN.json", type=read_run)
    parser.add_argument("--plot", type=Path, required=True, help="where to draw, as SVG")
    parser.add_argument("--title", default="Learning curves", help="above the plot")
    parser.add_argument("--reference", nargs="+", default=[], metavar="NAME=VALUE", type=reference)
    arguments = parser.parse_args(words)
    runs = dict(arguments.runs)
    print_table(
        ("", "steps", "best at", "Recall@10", "NDCG@10", "test Recall@10", "test NDCG@10", "hours"),
        [
            (
                name,
                run["history"][-1]["step"],
                max(run["history"], key=lambda made: made["metrics"][METRIC])["step"],
                *(
                    f"{run['metrics'][split]['model'][metric]:.5f}"
                    for split in ("validation", "test")
                    for metric in (METRIC, "ndcg@10")
                ),
                run["training_s"] / 3600,
            )
            for name, run in runs.items()
        ],
    )
    write_lines(
        arguments.plot,
        arguments.title,
        [
            Panel(
                title="validation Recall@10",
                x="",
                lines={
                    name: [(made["step"], made["metrics"][METRIC]) for made in run["history"]]
                    for name, run in runs.items()
                },
                levels=dict(arguments.reference),
            ),
            Panel(
                title="training loss, nats",
                x="steps",
                lines={
                    name: [(made["step"], made["loss"]) for made in run["history"]]
                    for name, run in runs.items()
                },
                from_zero=False,
            ),
        ],
    )


if __name__ == "__main__":
    main()
