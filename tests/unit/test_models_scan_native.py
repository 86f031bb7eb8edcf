"""How the native scan is compiled, kept and, where that cannot be, done without."""

import logging
import os
import subprocess
import sys
from hashlib import sha256
from pathlib import Path

import psutil
import pytest
import torch

from models import native_build
from models.native_build import NativeUnavailable, build_library
from models.scan import native, scan, scan_time_major, use_backend
from models.scan.layout import PackedLayout
from models.scan.native import NativeScan, load_native
from models.scan.recurrence import backend_for
from pipeline.settings import TrainerSettings
from pipeline.training.scan_form import fastest_scan
from tests.kafka import wait_until

CPU = torch.device("cpu")


def libraries(folder: Path) -> list[Path]:
    return sorted(folder.iterdir())


def test_what_was_compiled_is_used_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """The second load compiles nothing and leaves the file as it is."""
    load_native(tmp_path / "cache")
    (library,) = libraries(tmp_path / "cache")
    written_ns = library.stat().st_mtime_ns
    monkeypatch.setattr(native_build, "_build", None)  # a call would fail

    load_native(tmp_path / "cache")

    assert libraries(tmp_path / "cache") == [library]
    assert library.stat().st_mtime_ns == written_ns


def test_processes_may_compile_at_the_same_time(tmp_path: Path) -> None:
    """Three that start together all get a form that works, and one file is left."""
    code = (
        "import sys, torch; from pathlib import Path\n"
        "from models.scan import scan, use_backend\n"
        "from models.scan.native import load_native\n"
        "ones = torch.ones(3, 2, dtype=torch.complex64)\n"
        "with use_backend(load_native(Path(sys.argv[1]))):\n"
        "    h, last = scan(ones, ones[0], ones[:1], torch.tensor([3]))\n"
        "assert last.tolist() == [[4, 4]], last\n"
    )

    running = [subprocess.Popen([sys.executable, "-c", code, str(tmp_path)]) for _ in range(3)]

    assert [process.wait(timeout=120) for process in running] == [0, 0, 0]
    assert len(libraries(tmp_path)) == 1


@pytest.mark.parametrize("part", ["source", "flags", "processor"])
def test_a_library_made_for_something_else_is_not_used(
    part: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Another source, other flags or another processor mean another file."""
    load_native(tmp_path / "cache")
    if part == "source":
        other = tmp_path / "native.cpp"
        other.write_text(native.SOURCE.read_text() + "// new\n")
        monkeypatch.setattr(native, "SOURCE", other)
    elif part == "flags":
        monkeypatch.setattr(native_build, "FLAGS", (*native_build.FLAGS, "-g0"))
    else:
        monkeypatch.setattr(native_build, "_processor", lambda: "another one")

    load_native(tmp_path / "cache")

    assert len(libraries(tmp_path / "cache")) == 2


def test_without_a_compiler_training_goes_by_the_loop(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    """One line of the log says so, and why."""
    monkeypatch.setattr(native_build, "COMPILERS", ("no-such-compiler",))
    trainer = TrainerSettings(device="cpu", cache_dir=tmp_path)

    with caplog.at_level(logging.INFO), fastest_scan(trainer):
        assert backend_for(CPU).name == "loop"

    (line,) = caplog.messages
    assert "form of the scan: loop (no C++ compiler: none of no-such-compiler in the PATH)" in line


def test_a_build_that_fails_is_told_and_leaves_nothing_behind(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The file that was to become a library is gone, too."""
    compiler = tmp_path / "c++"
    compiler.write_text("#!/bin/sh\necho 'sorry, no OpenMP' >&2; exit 3\n")
    compiler.chmod(0o755)
    monkeypatch.setattr(native_build, "COMPILERS", (str(compiler),))

    with pytest.raises(NativeUnavailable, match="exit code 3: sorry, no OpenMP"):
        load_native(tmp_path / "cache")

    assert libraries(tmp_path / "cache") == []


SMALL = 'extern "C" int answer() { return 42; }\n'


def fake_compiler(path: Path, script: str, monkeypatch: pytest.MonkeyPatch) -> None:
    """Put a script before the real compilers."""
    path.write_text(f"#!/bin/sh\n{script}\n")
    path.chmod(0o755)
    monkeypatch.setattr(native_build, "COMPILERS", (str(path), *native_build.COMPILERS))


@pytest.fixture
def small(tmp_path: Path) -> Path:
    source = tmp_path / "small.cpp"
    source.write_text(SMALL)
    return source


def test_a_compiler_that_cannot_is_passed_over(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A c++ without OpenMP, whose message is in Latin-1, does not hide the g++ behind it."""
    fake_compiler(tmp_path / "broken", r"printf 'r\351pertoire' >&2; exit 1", monkeypatch)

    assert build_library(small, "small", tmp_path / "cache").exists()

    monkeypatch.setattr(native_build, "COMPILERS", native_build.COMPILERS[:1])
    with pytest.raises(NativeUnavailable, match="exit code 1: r\ufffdpertoire"):
        build_library(small, "other", tmp_path / "cache")


def test_a_compiler_of_another_processor_is_passed_over(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A c++ that cannot even be started does not hide the g++ behind it."""
    fake_compiler(tmp_path / "foreign", "", monkeypatch)
    (tmp_path / "foreign").write_bytes(b"\x7fELF of another world")

    assert build_library(small, "small", tmp_path / "cache").exists()

    monkeypatch.setattr(native_build, "COMPILERS", native_build.COMPILERS[:1])
    with pytest.raises(NativeUnavailable, match=r"foreign cannot be started: .*Exec format error"):
        build_library(small, "other", tmp_path / "cache")


def test_a_compiler_that_hangs_is_ended_with_all_it_started(
    small: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The compiler itself is often a child of the command, or of a cache before it."""
    child = tmp_path / "child"
    fake_compiler(tmp_path / "hangs", f"sleep 300 & echo $! >{child}; wait", monkeypatch)
    monkeypatch.setattr(native_build, "COMPILERS", native_build.COMPILERS[:1])
    monkeypatch.setattr(native_build, "BUILD_LIMIT_S", 0.5)

    with pytest.raises(NativeUnavailable, match="timed out"):
        build_library(small, "small", tmp_path / "cache")

    process = int(child.read_text())
    wait_until(lambda: not psutil.pid_exists(process), "the end of the child", 10)


def test_others_may_use_what_they_may_not_write(small: Path, tmp_path: Path) -> None:
    """An image can bring libraries that root has built."""
    library = build_library(small, "small", tmp_path / "cache")

    assert library.stat().st_mode & 0o777 == 0o755


@pytest.mark.parametrize("damage", ["cut short", "zeros", "one byte", "empty"])
def test_a_damaged_library_is_built_again(
    damage: str, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """It has its old name and content again, and one line of the log says so."""
    library = build_library(small, "small", tmp_path / "cache")
    built = library.read_bytes()
    damaged = {
        "cut short": built[: len(built) // 2],
        "zeros": bytes(len(built)),
        "one byte": built[:-1] + bytes([built[-1] ^ 1]),
        "empty": b"",
    }[damage]
    library.write_bytes(damaged)

    for _ in range(2):
        assert build_library(small, "small", tmp_path / "cache") == library

    assert library.read_bytes() == built
    assert libraries(library.parent) == [library]
    assert caplog.messages == [f"{library} is damaged ({len(damaged)} bytes): built again"]


@pytest.mark.parametrize("whose", ["others may write it", "of another user"])
def test_a_library_of_others_is_built_again(
    whose: str, small: Path, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Its folder may have been put in the place of the one that only this user writes."""
    library = build_library(small, "small", tmp_path / "cache")
    if whose == "of another user":
        if os.geteuid() != 0:
            pytest.skip("only root can give a file away")
        os.chown(library, 65534, -1)
    else:
        library.chmod(0o757)

    for _ in range(2):
        assert build_library(small, "small", tmp_path / "cache") == library

    assert (library.stat().st_uid, library.stat().st_mode & 0o777) == (os.geteuid(), 0o755)
    assert caplog.messages == [f"{library} is of other users: built again"]


@pytest.mark.parametrize("load", ["scan.native.load_native", "serving.native.load_native_serving"])
def test_a_library_that_was_cut_short_is_not_loaded(load: str, tmp_path: Path) -> None:
    """In processes of their own: loading it would kill whoever does."""
    module, _, function = load.rpartition(".")
    code = (
        "import logging, sys; from pathlib import Path\n"
        f"from models.{module} import {function} as load\n"
        "logging.basicConfig(format='%(message)s')\n"
        "load(Path(sys.argv[1]))\n"
    )
    run = [sys.executable, "-c", code, str(tmp_path)]
    subprocess.run(run, check=True, timeout=120)
    (library,) = libraries(tmp_path)
    half = library.stat().st_size // 2
    with library.open("r+b") as file:
        file.truncate(half)

    done = subprocess.run(run, capture_output=True, text=True, check=False, timeout=120)

    assert (done.returncode, done.stderr) == (
        0,
        f"{library} is damaged ({half} bytes): built again\n",
    )
    assert libraries(tmp_path) == [library]


def test_what_the_loader_refuses_is_told_by_its_name(tmp_path: Path) -> None:
    """Training then goes on without it, and the operator knows what to remove."""
    library = build_library(native.SOURCE, "scan", tmp_path)
    library.unlink()
    stem, _, _ = library.stem.rpartition("-")
    refused = tmp_path / f"{stem}-{sha256(b'not a library').hexdigest()[:32]}.so"
    refused.write_bytes(b"not a library")
    refused.chmod(0o755)

    with pytest.raises(NativeUnavailable, match=f"{refused} cannot be loaded"):
        load_native(tmp_path)


def test_a_folder_that_cannot_be_written_is_told(tmp_path: Path) -> None:
    """The error is the one that training knows how to do without."""
    (tmp_path / "file").touch()

    with pytest.raises(NativeUnavailable, match="cannot be made in"):
        load_native(tmp_path / "file" / "cache")


@pytest.mark.parametrize("mode", [0o770, 0o707])
def test_a_folder_that_others_may_write_is_not_used(mode: int, tmp_path: Path) -> None:
    """Whoever put a library there would run code as this user."""
    library = build_library(native.SOURCE, "scan", tmp_path / "cache")
    library.parent.chmod(mode)

    with pytest.raises(NativeUnavailable, match=f"mode 700, got user .* and mode {mode:o}"):
        build_library(native.SOURCE, "scan", tmp_path / "cache")


@pytest.mark.parametrize(
    "lengths",
    [
        torch.tensor([3, 1, 2], dtype=torch.int32),
        torch.tensor([3, 9, 1, 9, 2, 9])[::2],
        torch.tensor([2]).expand(3),
    ],
    ids=["int32", "strided", "expanded"],
)
def test_lengths_may_lie_in_memory_as_they_like(lengths: torch.Tensor, tmp_path: Path) -> None:
    """The compiled form is given an address; what lies behind it must be int64, end to end."""
    generator = torch.Generator().manual_seed(0)
    u, h0, lam = (
        torch.randn(*size, dtype=torch.complex64, generator=generator) / 2
        for size in ((6, 4), (3, 4), (4,))
    )
    expected, last = scan(u, lam, h0, lengths)

    with use_backend(load_native(tmp_path)):
        h, ends = scan(u, lam, h0, lengths)

    torch.testing.assert_close(h, expected)
    torch.testing.assert_close(ends, last)


@pytest.mark.parametrize(("scan", "name"), [("auto", "native"), ("loop", "loop")])
def test_the_setting_chooses_the_form_for_the_training_alone(
    scan: str, name: str, tmp_path: Path, caplog: pytest.LogCaptureFixture
) -> None:
    """Inside it is the wanted one, and the log names it; afterwards it is what it was."""
    trainer = TrainerSettings(device="cpu", scan=scan, cache_dir=tmp_path)  # type: ignore[arg-type]

    with caplog.at_level(logging.INFO), fastest_scan(trainer):
        assert backend_for(CPU).name == name

    assert f"training on cpu; form of the scan: {name}" in caplog.text
    assert backend_for(CPU).name == "loop"


def test_a_scan_that_nobody_prepared_compiles_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    """Workers never wait for a compiler."""
    monkeypatch.setattr(subprocess, "run", None)  # a call would fail
    ones = torch.ones(2, 1, dtype=torch.complex64)

    h = scan_time_major(ones, ones[0], None, PackedLayout.from_lengths(torch.tensor([2])))

    assert h.tolist() == [[1], [2]]
    assert not isinstance(backend_for(CPU), NativeScan)
