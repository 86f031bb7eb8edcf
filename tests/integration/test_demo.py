"""The demo as a stranger runs it: finished, interrupted, and bereft of what it started."""

import gzip
import json
import os
import random
import re
import signal
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path

import psutil
import pytest

from tests.kafka import admin_client, wait_until

QUICK = ["--training.time-budget-s", "3", "--training.max-epochs", "8"]
STEP_DEADLINE_S = 120.0  # on a busy machine; a demo of this size takes 25 s on an idle one


def runs(process: psutil.Process) -> bool:
    """Whether it runs, and is not merely waiting to be collected."""
    try:
        return process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


class RunningDemo:
    """`lrurec demo` in a folder of its own; its output goes to a file, as in a pipe."""

    def __init__(self, folder: Path, *arguments: str) -> None:
        self.folder = folder
        self._output = folder / "output.txt"
        with self._output.open("w") as output:
            self.process = subprocess.Popen(
                [sys.executable, "-m", "pipeline", "demo", *QUICK, *arguments],
                cwd=folder,
                stdout=output,
                stderr=subprocess.STDOUT,
                start_new_session=True,  # a process group of its own, as under a terminal
            )

    @property
    def output(self) -> str:
        return self._output.read_text()

    def wait_for(self, text: str) -> None:
        """Wait until the output holds a text."""

        def has_come() -> bool:
            assert self.process.poll() is None, self.output
            return text in self.output

        wait_until(has_come, f"{text!r} in the demo's output", STEP_DEADLINE_S)

    def started(self) -> list[psutil.Process]:
        """Every process that it has started, and what those have."""
        return psutil.Process(self.process.pid).children(recursive=True)

    def find(self, word: str) -> psutil.Process:
        """Of these, the one that is not a shell and has a word in its command line."""
        own = [one for one in self.started() if one.name() != "sh" and word in one.cmdline()]
        return own[0]

    def end(self, number: signal.Signals) -> tuple[int, list[psutil.Process]]:
        """Signal its process group; its exit code, and what it had started and still runs."""
        started = self.started()
        os.killpg(self.process.pid, number)
        return self.wait(), [process for process in started if runs(process)]

    def wait(self) -> int:
        """Wait for its end; its exit code."""
        return self.process.wait(STEP_DEADLINE_S)


@pytest.fixture
def folder(tmp_path: Path) -> Iterator[Path]:
    """An empty folder, in which no process may be left behind."""
    yield tmp_path
    left = [
        process
        for process in psutil.process_iter(["cwd"])
        if process.info["cwd"] == str(tmp_path) and runs(process)
    ]
    for process in left:
        process.kill()
    assert not left


def write_clicks(path: Path, *, rows: int = 3000, users: int = 60, items: int = 8) -> Path:
    """Write a table: users mostly walk round the items; several share a time; some only look."""
    chance = random.Random(0)
    at = [chance.randrange(items) for _ in range(users)]
    lines = ["user,item,timestamp,event_type"]
    for row in range(rows):
        user = chance.randrange(users)
        at[user] = (at[user] + 1) % items if chance.random() < 0.8 else chance.randrange(items)
        kind = "look" if chance.random() < 0.1 else "buy"
        lines.append(f"u{user},item-{at[user]},{1_700_000_000 + row // 5},{kind}")
    path.write_text("\n".join(lines) + "\n")
    return path


def write_sequences(path: Path, *, users: int = 80, items: int = 30) -> Path:
    """Write sequences, gzipped."""
    chance = random.Random(1)
    lines = []
    for user in range(users):
        first, length = chance.randrange(items), chance.randrange(3, 40)
        lines.append(f"{user} " + " ".join(str((first + n) % items) for n in range(length)))
    path.write_bytes(gzip.compress("\n".join(lines).encode()))
    return path


def write_titles(path: Path, items: int = 8) -> Path:
    titles = [f"item-{n}\tThe [bold]{n}th[/bold] thing" for n in range(items)]
    path.write_text("item\ttitle\n" + "\n".join(titles) + "\n")
    return path


def test_a_demo_on_a_small_file_keeps_every_promise(folder: Path) -> None:
    """Fewer items than K, equal times, two kinds of events: exit code 0, and JSON that says why."""
    data = write_clicks(folder / "clicks.csv")
    titles = write_titles(folder / "titles.tsv")
    given = ["--data", str(data), "--items", str(titles), "--json", "report.json"]

    demo = RunningDemo(folder, *given, "--rate", "80", "--fields.accepted-event-types", "buy")
    code = demo.wait()

    assert code == 0, demo.output
    report = json.loads((folder / "report.json").read_text())
    bought = data.read_text().count(",buy\n")
    assert report["holds"]
    assert report["finished"]
    assert all(promise["kept"] for promise in report["promises"])
    assert report["data"]["events"] == 3000
    assert report["data"]["items"] == 8
    assert report["verify"]["holds"]
    assert report["verify"]["offsets"]["applied"] == bought
    assert report["verify"]["offsets"]["skipped"] == 3000 - bought
    assert report["verify"]["max_abs_diff"] < 1e-5
    assert report["replay"]["records"] == 2400
    assert report["catch_up"]["answered"] == 2400
    live = report["live"]
    assert live["answered"] == live["replay"]["records"] == 600
    assert live["replay"]["rate"] == pytest.approx(80, rel=0.1)
    assert 0 < live["p50_s"] <= live["p99_s"]
    assert 0 < live["judged"] <= 600
    assert live["stale"] == 0
    assert set(live["recall"]) == {"model", "popularity", "repeat_last"}
    assert live["recall"]["model"] == 1.0, "8 items fit in a list of 10"
    assert set(report["training"]["metrics"]) == {"model", "popularity"}
    assert "The [bold]" in demo.output
    assert "Every promise held" in demo.output
    assert not re.search(r"[\x00-\x08\x0b-\x1f]", demo.output), "control characters in a pipe"
    assert (folder / ".lrurec/demo/worker.log").exists()


def test_after_an_interrupted_run_the_next_one_begins_anew(folder: Path) -> None:
    """Sequences after a table, in the same folder: nothing of the first run is found in the second.

    The first one is interrupted while it trains, when its events are in the topic.
    """
    data = write_clicks(folder / "clicks.csv", rows=1000)
    first = RunningDemo(folder, "--data", str(data), "--training.time-budget-s", "30")
    first.wait_for("training: ")
    code, left = first.end(signal.SIGINT)
    assert (code, left) == (130, []), first.output

    sequences = write_sequences(folder / "walks.seq.txt.gz")
    given = ["--data", str(sequences), "--json", "second.json"]
    second = RunningDemo(folder, *given, "--rate", "300")
    code = second.wait()

    report = json.loads((folder / "second.json").read_text())
    assert code == 0, second.output
    assert report["verify"]["offsets"]["applied"] == report["data"]["events"]
    assert report["verify"]["users"] == 80


@pytest.mark.parametrize(
    ("step", "number", "expected"),
    [
        ("data: ", signal.SIGINT, 130),
        ("Kafka: starting", signal.SIGTERM, 143),
        ("training: ", signal.SIGINT, 130),
        ("worker: ", signal.SIGHUP, 129),
        ("live: ", signal.SIGINT, 130),
    ],
)
def test_an_interruption_leaves_no_process(
    folder: Path, step: str, number: signal.Signals, expected: int
) -> None:
    """At whatever step, by Ctrl-C, SIGTERM or a closed terminal: one line and nothing runs on."""
    data = write_clicks(folder / "clicks.csv", rows=1000)
    demo = RunningDemo(folder, "--data", str(data), "--rate", "10")
    demo.wait_for(step)
    started = {process.name() for process in demo.started()}

    code, left = demo.end(number)

    assert code == expected, demo.output
    assert left == []
    last = demo.output.splitlines()[-1]
    assert last == "lrurec demo: interrupted; everything it started is stopped"
    assert "Traceback" not in demo.output
    assert "java" in started or step in ("data: ", "Kafka: starting")


def test_a_worker_that_dies_ends_the_demo_with_its_log(folder: Path, kafka: str) -> None:
    """On a given cluster too: exit code 1, one line that names the log, topics removed."""
    data = write_clicks(folder / "clicks.csv", rows=1000)
    demo = RunningDemo(
        folder, "--data", str(data), "--rate", "10", "--kafka.bootstrap-servers", kafka
    )
    demo.wait_for("live: ")
    prefix = re.search(r"lrurec-demo-\d+", demo.output)
    assert prefix is not None

    demo.find("worker").kill()
    code = demo.wait()

    assert code == 1, demo.output
    last = demo.output.splitlines()[-1]
    assert "the worker has ended with exit code 137" in last
    assert ".lrurec/demo/worker.log" in last
    with admin_client(kafka) as admin:
        assert [name for name in admin.list_topics() if name.startswith(prefix.group())] == []


def test_a_kafka_that_dies_ends_the_demo_with_its_log(folder: Path) -> None:
    """In the midst of a training, which by itself would not notice: one line that names the log."""
    data = write_clicks(folder / "clicks.csv", rows=1000)
    demo = RunningDemo(folder, "--data", str(data), "--training.time-budget-s", "30")
    demo.wait_for("training: ")

    demo.find("kafka.Kafka").kill()
    code = demo.wait()

    assert code == 1, demo.output
    last = demo.output.splitlines()[-1]
    assert re.search(r"lrurec demo: Kafka \(process \d+\) has ended; its log: .*broker\.log", last)


def test_a_demo_in_the_folder_of_another_is_refused(folder: Path, kafka: str) -> None:
    """The second names the process of the first, which goes on."""
    data = write_clicks(folder / "clicks.csv", rows=1000)
    given = ["--data", str(data), "--kafka.bootstrap-servers", kafka]
    first = RunningDemo(folder, *given, "--training.time-budget-s", "30")
    first.wait_for("training: ")
    output = (folder / "output.txt").rename(folder / "first.txt")

    second = RunningDemo(folder, *given)
    code = second.wait()

    assert code == 1
    assert f"another demo runs there (process {first.process.pid})" in second.output
    assert first.process.poll() is None, output.read_text()
    first.end(signal.SIGTERM)


def test_too_little_data_is_refused_in_one_line(folder: Path, kafka: str) -> None:
    """The line names the file and what training needs."""
    data = folder / "tiny.csv"
    data.write_text("user,item,timestamp\na,x,1700000000\nb,y,1700000001\nc,x,1700000002\n")

    demo = RunningDemo(folder, "--data", str(data), "--kafka.bootstrap-servers", kafka)
    code = demo.wait()

    assert code == 1, demo.output
    last = demo.output.splitlines()[-1]
    assert last.startswith("lrurec demo: tiny.csv: the first 80% of its 3 rows are too little")
    assert "at least 3 events" in last


def test_a_broken_file_is_refused_before_anything_starts(folder: Path) -> None:
    """The line names file, line and what was expected."""
    data = folder / "broken.csv"
    data.write_text("user,item,timestamp\na,x,yesterday\n")

    demo = RunningDemo(folder, "--data", str(data))
    code = demo.wait()

    assert code == 1
    assert "broken.csv, line 2: expected a timestamp" in demo.output.splitlines()[-1]
    assert not (folder / ".lrurec").exists()
