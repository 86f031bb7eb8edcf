"""Trainings that torchrun starts as two processes: one result, one writer, no hanging."""

import json
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import psutil
import pytest

from models.release import read_release
from pipeline.settings import Settings, settings_flags
from pipeline.training.folder import release_versions
from pipeline.worker.releases import read_announcements
from tests.kafka import wait_until
from tests.ring_world import ring_settings, send_walks

TORCHRUN = (sys.executable, "-m", "torch.distributed.run", "--nproc-per-node", "2")
SMALL = (
    *("--model.hidden-size", "16", "--model.n-blocks", "1", "--model.max-length", "8"),
    *("--training.batch-size", "16", "--training.learning-rate", "0.01"),
    *("--training.patience", "1000", "--trainer.threads", "1"),
    *("--trainer.device", "cpu"),  # two processes would want two GPUs
)
NO_DROPOUT = ("--model.dropout", "0", "--model.lru-dropout", "0")
LOSS_RELATIVE = 1e-5
"""Float32 sums of the same terms in other orders, over a few steps."""


@pytest.fixture
def ring_file(tmp_path: Path) -> Path:
    """Histories in which every item is followed by the next of a ring of 30."""
    lines = [
        " ".join([f"user-{start}", *(f"i{(start + step) % 30}" for step in range(4 + start % 9))])
        for start in range(33)
    ]
    path = tmp_path / "ring.seq.txt"
    path.write_text("\n".join([*lines, ""]))
    return path


def evaluation(launcher: tuple[str, ...], *arguments: str) -> list[str]:
    return [*launcher, "-m", "pipeline", "evaluate", *arguments, *SMALL]


def run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(command, capture_output=True, text=True, timeout=120, check=False)


def history(report: Path) -> list[dict[str, Any]]:
    """Every validation that a report tells of, without the clock's part."""
    validations: list[dict[str, Any]] = json.loads(report.read_text())["history"]
    return [validation | {"seconds": 0} for validation in validations]


def test_an_evaluation_by_two_processes_says_what_one_does(ring_file: Path, tmp_path: Path) -> None:
    """The report is written once and has the metrics of a single process; the log is one's."""
    reports = tmp_path / "one.json", tmp_path / "two.json"

    for launcher, report in zip(((sys.executable,), TORCHRUN), reports, strict=True):
        arguments = ("--json", str(report), "--training.max-epochs", "4", *NO_DROPOUT)
        done = run(evaluation(launcher, str(ring_file), *arguments))
        assert done.returncode == 0, done.stderr
        assert done.stderr.count("form of the scan") == 1
        assert done.stdout.count("33 ranked for") == 1

    one, two = (json.loads(report.read_text()) for report in reports)
    assert two["metrics"] == one["metrics"]
    losses = [[made["loss"] for made in history(report)] for report in reports]
    assert losses[1] == pytest.approx(losses[0], rel=LOSS_RELATIVE)


def test_a_process_that_is_killed_ends_all_and_the_next_run_goes_on(
    ring_file: Path, tmp_path: Path
) -> None:
    """Nobody waits for the dead; from the checkpoint, two processes end as if it had not been."""
    whole, resumed, checkpoint = (tmp_path / name for name in ("whole", "resumed", "checkpoint"))
    epochs = ("--training.max-epochs", "30")
    long_run = evaluation(
        TORCHRUN, str(ring_file), "--checkpoint", str(checkpoint), "--training.max-epochs", "99999"
    )

    with subprocess.Popen(long_run, stderr=subprocess.PIPE, text=True) as torchrun:
        wait_until(checkpoint.exists, "the first checkpoint", 60)
        processes = psutil.Process(torchrun.pid).children()
        (second,) = (p for p in processes if p.environ().get("LOCAL_RANK") == "1")
        started = time.monotonic()
        second.kill()
        _, said = torchrun.communicate(timeout=60)
    waited_s = time.monotonic() - started
    for report, more in ((whole, ()), (resumed, ("--checkpoint", str(checkpoint)))):
        done = run(evaluation(TORCHRUN, str(ring_file), "--json", str(report), *epochs, *more))
        assert done.returncode == 0, done.stderr

    assert torchrun.returncode != 0
    assert waited_s < 45
    assert not any(process.is_running() for process in processes)
    assert "Signal 9 (SIGKILL)" in said
    assert history(resumed)[:30] == history(whole)


def test_one_release_comes_of_a_training_by_two_processes(settings: Settings) -> None:
    """The first process reads, judges, writes and announces; the second only trains."""
    own = ring_settings(settings)
    send_walks(own, users=150)

    done = run([*TORCHRUN, "-m", "pipeline", "train", *settings_flags(own)])

    assert done.returncode == 0, done.stderr
    assert release_versions(own.trainer.releases_dir) == [1]
    (announced,) = (one for _, one in read_announcements(own))
    release = read_release(own.trainer.releases_dir / "1")
    assert announced.version == 1
    recalls = release.metrics["test"]
    assert recalls["model"]["recall@10"] > recalls["popularity"]["recall@10"]
    assert done.stdout.count("announced") == 1


def test_what_the_first_process_cannot_do_ends_all(settings: Settings) -> None:
    """An empty topic is said once, and no other process waits for what will not come."""
    own = ring_settings(settings)

    done = run([*TORCHRUN, "-m", "pipeline", "train", *settings_flags(own)])

    assert done.returncode == 1
    said = [line for line in done.stderr.splitlines() if line.startswith("lrurec train: ")]
    assert sum("expected events to train on, got none" in line for line in said) == 1


def test_the_trainer_is_one_process(settings: Settings) -> None:
    """Under torchrun it ends at once and says what to do."""
    done = run([*TORCHRUN, "-m", "pipeline", "trainer", *settings_flags(settings)])

    assert done.returncode == 1
    assert "trainer is one process: run it without torchrun" in done.stderr
