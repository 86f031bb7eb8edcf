"""Libraries in C++, compiled on the machine that uses them.

One call of the system's compiler, without torch's headers and without a build tool: a second or
two. A library is kept in a folder, under a name that says what it was made of and for (sources,
flags, compiler, processor and torch, whose OpenMP runtime it shares) and what is in it: a full disk
or a copy may have cut it short, and loading that kills the process. Processes that build at the
same time do not disturb each other: each writes a file of its own and renames it.
"""

import hashlib
import logging
import os
import platform
import shutil
import signal
import subprocess
import tempfile
from pathlib import Path

import torch

from models.errors import ModelError

COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
"""Nothing that changes what infinities and NaNs do."""
BUILD_LIMIT_S = 60

_log = logging.getLogger(__name__)


class NativeUnavailable(ModelError):
    """A native form cannot be had on this machine; the message says why.

    Operator action: none needed, torch does the same work more slowly. To have it, install a C++
    compiler with OpenMP (Debian: g++).
    """


def build_library(source: Path, name: str, folder: Path) -> Path:
    """Return the library made of a source, built now if the folder does not hold it undamaged.

    Args:
        source: One C++ file, which includes no other of ours but headers that lie beside it.
        name: What the library's file name begins with.
        folder: Where libraries are kept, ~ for the user's home; made if it is missing. What is in
            it is run: it must be one that only this user writes.

    Raises:
        NativeUnavailable: There is no compiler, it fails, or the folder cannot be written, or
            others may write it.
    """
    compilers = list(filter(None, map(shutil.which, COMPILERS)))
    if not compilers:
        msg = f"no C++ compiler: none of {', '.join(COMPILERS)} in the PATH"
        raise NativeUnavailable(msg)
    try:
        folder = folder.expanduser()
        folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        _require_private(folder)
        failures = []
        for compiler in compilers:
            try:
                stem = f"{name}-{_fingerprint(compiler, source)}"
                return _kept(folder, stem) or _build(compiler, source, folder, stem)
            except NativeUnavailable as error:
                failures.append(error)
        raise failures[0]
    except (OSError, RuntimeError) as error:  # Runtime: no home
        msg = f"the library for it cannot be made in {folder}: {error}"
        raise NativeUnavailable(msg) from error


def _kept(folder: Path, stem: str) -> Path | None:
    """Return the library that is as it was built, if there is one."""
    for library in sorted(folder.glob(f"{stem}-*.so")):
        if _is_good(stem, library):
            return library
        # Not removed: another process may have put a good one in its place by now.
        found = library.stat()
        what = f"is damaged ({found.st_size} bytes)" if _is_private(found) else "is of other users"
        _log.warning("%s %s: built again", library, what)
    return None


def _is_good(stem: str, library: Path) -> bool:
    """Tell whether a library is undamaged, and of this user like its folder.

    Who may write the folder above, as in many a volume of a container, can put another one in the
    place of the folder that was looked at, but no file of this user's into that.
    """
    return _is_private(library.stat()) and library.name == _file_name(stem, library)


def _file_name(stem: str, library: Path) -> str:
    return f"{stem}-{hashlib.sha256(library.read_bytes()).hexdigest()[:32]}.so"


def _require_private(folder: Path) -> None:
    found = folder.stat()
    if not _is_private(found):
        msg = (
            f"{folder}: what is in it is run, so only this user may write there: expected it to "
            f"belong to user {os.geteuid()} with mode 700, got user {found.st_uid} and mode "
            f"{found.st_mode & 0o777:o}"
        )
        raise NativeUnavailable(msg)


def _is_private(found: os.stat_result) -> bool:
    return found.st_uid in (0, os.geteuid()) and not found.st_mode & 0o022


def _fingerprint(compiler: str, source: Path) -> str:
    """Digest everything that the library depends on."""
    version = _run([compiler, "--version"]).stdout
    headers = (header.read_text() for header in sorted(source.parent.glob("*.h")))
    parts = (
        source.read_text(),
        *headers,
        *FLAGS,
        compiler,
        version,
        _processor(),
        torch.__version__,
    )
    return hashlib.sha256("\0".join(parts).encode()).hexdigest()[:16]


def _processor() -> str:
    """Say which instructions this machine's processor has, or at least what it is called."""
    try:
        lines = Path("/proc/cpuinfo").read_text().splitlines()
    except OSError:
        return f"{platform.machine()} {platform.processor()}"
    # Model and instruction set, as x86 and Arm name them; not what changes, such as the clock.
    names = ("model name", "flags", "Features", "CPU part")
    return "\n".join(sorted({line for line in lines if line.startswith(names)}))


def _build(compiler: str, source: Path, folder: Path, stem: str) -> Path:
    with tempfile.TemporaryDirectory(dir=folder, prefix=".building-") as place:
        # By the same name each time: some linkers write it into the library.
        building = Path(place, "library.so")
        done = _run([compiler, *FLAGS, str(source.resolve()), "-o", building.name], place)
        if done.returncode != 0:
            first = next(iter(done.stderr.splitlines()), "no message")
            msg = f"{compiler} fails with exit code {done.returncode}: {first}"
            raise NativeUnavailable(msg)
        building.chmod(0o755)  # who may not write the folder may use what is in it
        with building.open("rb") as file:
            os.fsync(file.fileno())
        library = folder / _file_name(stem, building)
        if library.exists() and _is_good(stem, library):
            return library  # of another process meanwhile; over a network it may be in use already
        return building.replace(library)


def _run(command: list[str], folder: str | None = None) -> subprocess.CompletedProcess[str]:
    """Run a command to its end, or end it and all that it has started.

    Raises:
        NativeUnavailable: It cannot be started, or hangs.
    """
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.PIPE,
            stderr=subprocess.PIPE,
            text=True,
            errors="replace",  # messages come in the system's language, paths as they are
            cwd=folder,
            start_new_session=True,
        )
    except OSError as error:  # made for another processor, say
        msg = f"{command[0]} cannot be started: {error}"
        raise NativeUnavailable(msg) from error
    with process:
        try:
            out, err = process.communicate(timeout=BUILD_LIMIT_S)
        except BaseException as error:
            os.killpg(process.pid, signal.SIGKILL)
            if isinstance(error, subprocess.TimeoutExpired):
                raise NativeUnavailable(str(error)) from error
            raise
    return subprocess.CompletedProcess(command, process.returncode, out, err)
