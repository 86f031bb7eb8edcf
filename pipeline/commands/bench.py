"""`lrurec bench`: the benchmarks of a checkout, each in a process of its own."""

import subprocess
import sys
from dataclasses import dataclass, field
from pathlib import Path
from typing import Literal

import tyro

from pipeline.errors import PipelineError
from pipeline.settings import Settings, SettingsFlags

Name = Literal[
    "scan",
    "step",
    "topk",
    "train",
    "store",
    "intake",
    "durable",
    "restore",
    "pipeline",
    "scale",
    "partitions",
    "pauses",
    "soak",
]


@dataclass(frozen=True, kw_only=True)
class Command:
    """Measure this machine; needs a checkout of the project, where the benchmarks are.

    `lrurec bench NAME -- --help` lists what can be set. All of them in turn: make bench.
    """

    name: tyro.conf.Positional[Name]
    """scan: every form of the scan beside the speed of memory. step: one step against a scan, and
    beside a SASRec that encodes anew. topk: the best items of a catalogue, several ways. train: a
    packed training step against the published form and a SASRec's. store: state rows to and from
    the disk. intake: records from Kafka to an agent that does nothing. durable: the same with rows
    and outputs made durable. restore: state rows from the changelog to the disk. pipeline: the
    whole worker. scale: one worker process beside two. partitions: 64 of them on one worker beside
    4. pauses: how long partitions stand still when workers come, go and die. soak: one worker for
    twenty minutes, and whether its memory stays as it is."""

    options: tyro.conf.Positional[tuple[str, ...]] = ()
    """The benchmark's own options, behind two dashes: lrurec bench step -- --rounds 50."""

    json: Path | None = None
    """File to write the figures to, with the machine and the versions."""

    plot: Path | None = None
    """SVG file to draw them in; scan, step, topk, train and soak can."""

    settings: SettingsFlags = field(default_factory=Settings)


def run(command: Command) -> int:
    """Run it and pass on its exit code.

    Raises:
        PipelineError: The benchmarks are not there.
    """
    root = Path(__file__).parents[2]
    module = f"tests.benchmarks.bench_{command.name}"
    if not (root / module.replace(".", "/")).with_suffix(".py").is_file():
        msg = (
            f"{module}: expected in {root}, not found there; benchmarks need a checkout of the "
            "project: run make bench, or lrurec bench from the checkout's own .venv"
        )
        raise PipelineError(msg)
    files = {"--json": command.json, "--plot": command.plot}
    wishes = [word for flag, path in files.items() if path for word in (flag, str(path.resolve()))]
    arguments = [sys.executable, "-m", module, *wishes, *command.options]
    return subprocess.run(arguments, cwd=root, check=False).returncode
