import ast
import importlib
import importlib.util
import json
import logging
import os
import re
import signal
import subprocess
import sys
import textwrap
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import pytest

from pipeline import __main__ as frame
from pipeline.__main__ import COMMANDS, Entry, main
from pipeline.log import FOREIGN

# A command that ends as it is told, to look at the frame around it.
PROBE = '''
import os, signal, sys, time
from dataclasses import dataclass, field
from pathlib import Path

import tyro

from models.errors import ReleaseCorrupt
from pipeline.errors import BrokerUnavailable, DataFileInvalid, SettingsInvalid
from pipeline.settings import Settings, SettingsFlags
from state.errors import StoreLocked


@dataclass(frozen=True, kw_only=True)
class Command:
    """End as told."""

    how: tyro.conf.Positional[str]
    """How to end."""
    trace: Path | None = None
    """A file that is written when the command is left."""
    settings: SettingsFlags = field(default_factory=Settings)


def run(command):
    if command.how == "port":
        print(command.settings.metrics.port)
        return 0
    if command.how == "seven":
        return 7
    if command.how == "chatter":
        while True:
            print("x" * 1000)
    if command.how == "last word":
        print("x" * 10)
        return 0
    if command.how == "table":
        from pipeline.console import CommandConsole
        CommandConsole(stderr=True).print("how far it is")
        command.trace.write_text("reported")
        CommandConsole().print("x" * 10)
        return 0
    if command.how == "wait":
        try:
            print("waiting", flush=True)
            time.sleep(60)
        finally:
            command.trace.write_text("left")
    errors = {
        "model": ReleaseCorrupt("release 3: digest of weights\\nis wrong"),
        "broker": BrokerUnavailable("no broker"),
        "file": DataFileInvalid("a.csv, line 3: broken \\x1b[2J"),
        "settings": SettingsInvalid("metrics.port must be free"),
        "store": StoreLocked("folder in use"),
        "bug": KeyError("x"),
        "pipe": BrokenPipeError("a socket"),
        "interrupt": KeyboardInterrupt(),
    }
    raise errors[command.how]
'''


@pytest.fixture
def commands(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Iterator[dict[str, Entry]]:
    """A table with the probe as its one command."""
    (tmp_path / "frame_probe.py").write_text(PROBE)
    monkeypatch.syspath_prepend(tmp_path)
    yield {"probe": Entry("frame_probe", "end as told")}
    sys.modules.pop("frame_probe", None)


@pytest.fixture(autouse=True)
def logging_as_before() -> Iterator[None]:
    """Leave the logging of the test run as it was: the frame configures it."""
    root = logging.getLogger()
    handlers, level = root.handlers[:], root.level
    yield
    root.handlers[:] = handlers
    root.setLevel(level)
    logging.captureWarnings(False)
    for name in FOREIGN:
        logging.getLogger(name).setLevel(logging.NOTSET)


@pytest.mark.parametrize("argv", [[], ["--help"], ["-h"]])
def test_the_help_lists_every_command(capsys: pytest.CaptureFixture[str], argv: list[str]) -> None:
    """Without arguments, or asked for help, the commands and their purpose are shown."""
    assert main(argv) == 0

    shown = capsys.readouterr().out
    for name, entry in COMMANDS.items():
        assert f"  {name} " in shown
        assert entry.help in shown


def test_an_unknown_command_is_refused_with_the_nearest(
    capsys: pytest.CaptureFixture[str],
) -> None:
    """One line, exit code 2."""
    assert main(["wroker"]) == 2
    assert capsys.readouterr().err == "lrurec: no command 'wroker'; did you mean worker?\n"
    assert main(["?"]) == 2
    assert capsys.readouterr().err == "lrurec: no command '?'; see lrurec --help\n"


def test_a_command_gets_its_flags_and_gives_its_code(
    commands: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    """What run returns is the exit code; settings reach it."""
    assert main(["probe", "seven"], commands) == 7
    assert main(["probe", "port", "--metrics.port", "17"], commands) == 0
    assert capsys.readouterr().out == "17\n"


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("model", 1, "release 3: digest of weights is wrong"),
        ("broker", 1, "no broker"),
        ("file", 1, r"a.csv, line 3: broken \x1b[2J"),
        ("store", 1, "folder in use"),
        ("settings", 2, "metrics.port must be free"),
    ],
)
def test_an_expected_error_is_one_line(
    commands: dict[str, Entry], capsys: pytest.CaptureFixture[str], how: str, code: int, line: str
) -> None:
    """The command's name and the message, no traceback."""
    assert main(["probe", how], commands) == code

    assert capsys.readouterr().err == f"lrurec probe: {line}\n"


@pytest.mark.parametrize(
    ("how", "code", "line"),
    [
        ("broker", 1, "lrurec probe: no broker"),
        ("settings", 2, "lrurec probe: metrics.port must be free"),
        ("bug", 70, "lrurec probe: this is a bug in the program, please report it"),
    ],
)
def test_in_a_log_of_json_the_last_line_is_json_too(
    commands: dict[str, Entry], capsys: pytest.CaptureFixture[str], how: str, code: int, line: str
) -> None:
    """Whoever collects the log by line finds why it ended."""
    assert main(["probe", how, "--log.format", "json"], commands) == code

    (last,) = map(json.loads, capsys.readouterr().err.splitlines())
    assert last["message"] == line
    assert ("exception" in last) == (how == "bug")


def test_nothing_is_said_after_the_end(tmp_path: Path) -> None:
    """Libraries in C++ list what they leaked when the process is taken down."""
    script = tmp_path / "leaks.py"
    script.write_text(
        "import ctypes, sys\n"
        "libc = ctypes.CDLL(None)\n"
        "libc.strdup.restype = ctypes.c_void_p\n"
        "said = ctypes.c_void_p(libc.strdup(b'leaked 514 functions'))\n"
        "libc.__cxa_atexit(libc.perror, said, None)\n"
        "from pipeline.__main__ import main\n"
        "sys.argv = ['lrurec', 'topics', 'check', '--metrics.port', '-1']\n"
        "sys.exit(main())\n"
    )

    done = subprocess.run(
        [sys.executable, script], capture_output=True, text=True, check=False, timeout=60
    )

    assert done.returncode == 2
    assert done.stderr.startswith("lrurec topics: metrics.port must be")
    assert len(done.stderr.splitlines()) == 1


def test_the_origin_of_an_expected_error_is_shown_for_debugging(
    commands: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    """At level DEBUG the traceback precedes the line."""
    assert main(["probe", "broker", "--log.level", "DEBUG"], commands) == 1

    stderr = capsys.readouterr().err
    assert "Traceback" in stderr
    assert stderr.endswith("lrurec probe: no broker\n")


@pytest.mark.parametrize("how", ["bug", "pipe"])
def test_a_bug_shows_its_traceback(
    commands: dict[str, Entry], capsys: pytest.CaptureFixture[str], how: str
) -> None:
    """Exit code 70; a broken pipe that is not stdout is one too."""
    assert main(["probe", how], commands) == 70

    stderr = capsys.readouterr().err
    assert "Traceback" in stderr
    assert stderr.endswith("lrurec probe: this is a bug in the program, please report it\n")


def test_an_interrupt_is_no_error(
    commands: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    """Ctrl-C ends with 130 and says nothing."""
    assert main(["probe", "interrupt"], commands) == 130
    assert capsys.readouterr() == ("", "")


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        (["probe"], "How to end. (required)"),
        (["probe", "seven", "--metrics.prot", "1"], "--metrics.prot"),
        (["probe", "seven", "--metrics.port", "x"], "--metrics.port"),
        (["probe", "seven", "--metrics.port", "-1"], "lrurec probe: metrics.port must be a port"),
        (["probe", "seven", "--training.seed", "-1"], "training.seed must be at least 0"),
    ],
)
def test_wrong_arguments_end_with_code_2(
    commands: dict[str, Entry], capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    """What is wrong is said on stderr, before any work."""
    assert main(argv, commands) == 2

    captured = capsys.readouterr()
    assert message in captured.err
    assert captured.err.startswith("lrurec probe: ")
    assert len(captured.err.splitlines()) == 1
    assert captured.out == ""


@pytest.mark.parametrize(
    ("argv", "message"),
    [
        *(
            (
                [command, *file, "--rate", rate],
                f"--rate must be over 0 and finite, got {float(rate)}",
            )
            for command, file in (("replay", ["no-file.csv"]), ("demo", []))
            for rate in ("0", "inf", "nan")
        ),
        (["watch", "--count", "-1"], "--count must be at least 0, got -1"),
    ],
)
def test_a_number_that_a_command_cannot_work_with_is_refused_at_once(
    capsys: pytest.CaptureFixture[str], argv: list[str], message: str
) -> None:
    """Exit code 2 and one line, before anything is read, sent or started."""
    assert main(argv) == 2

    assert capsys.readouterr() == ("", f"lrurec {argv[0]}: {message}\n")


WITH_REPORT = {
    "demo": [],
    "broker": ["status"],
    "topics": ["check"],
    "replay": ["no-file"],
    "train": [],
    "evaluate": ["no-file"],
    "import-checkpoint": ["no-file", "--items", "no-file", "--output", "no-folder"],
    "users": ["show", "u"],
    "announce": ["no-folder"],
    "score": ["--release", "no-folder"],
    "verify": [],
    "bench": ["scan"],
}
"""Commands that write a report, each with arguments that alone would fail later."""


@pytest.mark.parametrize(
    ("report", "why"),
    [("missing/x.json", "there is no folder {}/missing"), ("", "it is a folder")],
    ids=["missing", "folder"],
)
@pytest.mark.parametrize("name", COMMANDS)
def test_a_report_that_cannot_be_written_is_refused_before_any_work(
    capsys: pytest.CaptureFixture[str], tmp_path: Path, name: str, report: str, why: str
) -> None:
    """A training of an hour must not end with its result lost."""
    fields = importlib.import_module(COMMANDS[name].module).Command.__dataclass_fields__
    assert ("json" in fields) == (name in WITH_REPORT)
    if name not in WITH_REPORT:
        return
    path = tmp_path / report

    assert main([name, *WITH_REPORT[name], "--json", str(path)]) == 2

    assert capsys.readouterr().err == (
        f"lrurec {name}: --json must name a file that can be written, got {path}: "
        f"{why.format(tmp_path)}\n"
    )


def test_an_unknown_variable_ends_with_code_2(
    commands: dict[str, Entry],
    capsys: pytest.CaptureFixture[str],
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    """The process's own environment is read, and every name in it has to be right."""
    monkeypatch.setenv("LRUREC_METRICS__PORT", "18")
    assert main(["probe", "port"], commands) == 0
    monkeypatch.setenv("LRUREC_METRIC__PORT", "18")
    assert main(["probe", "port"], commands) == 2

    captured = capsys.readouterr()
    assert captured.out == "18\n"
    assert captured.err == (
        "lrurec probe: environment variable LRUREC_METRIC__PORT: no such setting; "
        "nearest is LRUREC_METRICS__PORT\n"
    )


def test_a_commands_help_shows_its_own_flags_and_the_settings(
    commands: dict[str, Entry], capsys: pytest.CaptureFixture[str]
) -> None:
    """Help is no error."""
    assert main(["probe", "--help"], commands) == 0

    shown = capsys.readouterr().out
    assert "usage: lrurec probe" in shown
    assert "--trace" in shown
    assert "--kafka.bootstrap-servers" in shown


def start(
    tmp_path: Path, *argv: str, out: IO[str] | int = subprocess.PIPE
) -> subprocess.Popen[str]:
    """Start the probe in a process of its own, called as the console command is."""
    (tmp_path / "frame_probe.py").write_text(PROBE)
    code = f"""
        import sys
        sys.path.insert(0, {str(tmp_path)!r})
        sys.argv[1:] = {["probe", *argv]!r}
        from pipeline import __main__ as frame
        frame.COMMANDS.clear()
        frame.COMMANDS["probe"] = frame.Entry("frame_probe", "end as told")
        sys.exit(frame.main())
    """
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        cwd=Path(frame.__file__).parents[1],
        stdout=out,
        stderr=subprocess.PIPE,
        text=True,
    )


@pytest.mark.parametrize("ending", [signal.SIGTERM, signal.SIGINT])
def test_a_signal_unwinds_what_a_command_does(tmp_path: Path, ending: signal.Signals) -> None:
    """What a command has started is stopped with it; the exit code tells the signal."""
    trace = tmp_path / "trace"
    with start(tmp_path, "wait", "--trace", str(trace)) as process:
        assert process.stdout is not None
        assert process.stdout.readline() == "waiting\n"
        process.send_signal(ending)
        _, stderr = process.communicate(timeout=30)

    assert process.returncode == 128 + ending
    assert trace.read_text() == "left"
    assert stderr == ""


@pytest.mark.parametrize("how", ["chatter", "last word"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_reader_that_leaves_is_no_error(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, unbuffered: str
) -> None:
    """`lrurec watch | head` ends quietly, also when only the last words find no reader."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    with start(tmp_path, how) as process:
        assert process.stdout is not None
        process.stdout.close()
        assert process.stderr is not None
        stderr = process.stderr.read()

    assert process.returncode == 141
    assert stderr == ""


@pytest.mark.parametrize("how", ["chatter", "last word", "table"])
@pytest.mark.parametrize("unbuffered", ["", "1"])
def test_a_full_disk_behind_stdout_is_no_bug(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, how: str, unbuffered: str
) -> None:
    """One line that says it, and exit code 1."""
    monkeypatch.setenv("PYTHONUNBUFFERED", unbuffered)
    trace = ["--trace", str(tmp_path / "trace")]
    with Path("/dev/full").open("w") as full, start(tmp_path, how, *trace, out=full) as process:
        _, stderr = process.communicate(timeout=30)

    assert process.returncode == 1
    assert stderr.splitlines()[-1] == (
        "lrurec probe: stdout cannot be written: No space left on device"
    )


def test_a_table_without_a_reader_is_no_broken_promise(tmp_path: Path) -> None:
    """`lrurec verify | true` does not end with 1; that nobody sees its progress ends nothing."""
    trace = tmp_path / "trace"
    with start(tmp_path, "table", "--trace", str(trace)) as process:
        assert process.stdout is not None
        assert process.stderr is not None
        process.stdout.close()
        process.stderr.close()

    assert process.returncode == 141
    assert trace.read_text() == "reported"


def test_every_command_draws_on_a_console_that_may_lose_its_reader() -> None:
    """Rich's own ends the process with 1, which means something else here."""
    for module in (Path(frame.__file__).parent).rglob("*.py"):
        if module.name != "console.py":
            assert not re.search(r"\bConsole\(", module.read_text()), module


def test_the_frame_needs_none_of_the_heavy_packages() -> None:
    """Help and light commands start without torch, Faust, Kafka clients and numpy."""
    heavy = ["torch", "faust", "aiokafka", "kafka", "numpy", "prometheus_client"]
    code = f"import sys, pipeline.__main__; print([m for m in {heavy} if m in sys.modules])"

    shown = subprocess.run(
        [sys.executable, "-c", code],
        cwd=Path(frame.__file__).parents[1],
        env={**os.environ, "PYTHONPATH": ""},  # noqa: TID251
        capture_output=True,
        text=True,
        check=True,
    )

    assert shown.stdout == "[]\n"


@pytest.mark.parametrize("name", COMMANDS)
def test_every_command_has_its_module(name: str) -> None:
    """Each has a dataclass Command with the settings and a function run."""
    spec = importlib.util.find_spec(COMMANDS[name].module)
    assert spec is not None
    assert spec.origin is not None

    body = ast.parse(Path(spec.origin).read_text()).body
    defined = {node.name: node for node in body if isinstance(node, ast.ClassDef | ast.FunctionDef)}

    assert isinstance(defined["run"], ast.FunctionDef)
    assert "settings: SettingsFlags" in ast.unparse(defined["Command"])
