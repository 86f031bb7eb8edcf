"""The recurrence in C++ (`native.cpp`), compiled on the machine that uses it.

One call of the system's compiler, without torch's headers and without a build tool: under a second.
The library is kept in a folder, under a name that says what it was made of and for: source, flags,
compiler, processor and torch, whose OpenMP runtime it shares. Processes that build at the same time
do not disturb each other: each writes a file of its own and renames it.
"""

import ctypes
import hashlib
import os
import platform
import shutil
import subprocess
import tempfile
from collections.abc import Callable
from pathlib import Path

import torch
from torch import Tensor

from models.errors import ModelError
from models.scan.layout import Rows

SOURCE = Path(__file__).with_name("native.cpp")
COMPILERS = ("c++", "g++", "clang++")
FLAGS = ("-std=c++17", "-O3", "-march=native", "-fopenmp", "-fPIC", "-shared")
"""Nothing that changes what infinities and NaNs do."""
BUILD_LIMIT_S = 60

_TYPES = {torch.complex64: "float", torch.complex128: "double"}


class NativeUnavailable(ModelError):
    """The native form cannot be had on this machine; the message says why.

    Operator action: none needed, training runs by another form. To have it, install a C++ compiler
    with OpenMP (Debian: g++).
    """


class NativeScan:
    """Scans on the CPU, by as many threads as torch has."""

    name = "native"
    device_type = "cpu"
    packed = True

    def __init__(self, library: ctypes.CDLL) -> None:
        self._block: int = library.scan_segments_of_a_block()
        self._forward, self._backward = (
            {
                dtype: _function(library, f"scan_{way}_{kind}", tensors)
                for dtype, kind in _TYPES.items()
            }
            for way, tensors in (("forward", 4), ("backward", 7))
        )

    def forward(self, u: Tensor, lam: Tensor, h0: Tensor, rows: Rows) -> Tensor:
        """Return the state at every row."""
        h = torch.empty_like(u)
        self._forward[u.dtype](*_pointers(u, lam, h0, h), *_shape(rows, u))
        return h

    def backward(
        self, grad: Tensor, h: Tensor, lam: Tensor, h0: Tensor, rows: Rows
    ) -> tuple[Tensor, Tensor]:
        """Return the gradients in u and lambda."""
        d, d_lam = torch.empty_like(h), torch.empty_like(lam)
        sums = h.new_empty(-(-len(h0) // self._block), h.shape[1])
        tensors = _pointers(grad, lam, h0, h, d, sums, d_lam)
        self._backward[h.dtype](*tensors, *_shape(rows, h))
        return d, d_lam


def load_native(folder: Path) -> NativeScan:
    """Return the native form, built now if the folder does not hold it; may take a few seconds.

    Args:
        folder: where libraries are kept; made if it is missing. What is in it is run: it must be
            one that only this user writes.

    Raises:
        NativeUnavailable: there is no compiler, it fails, or the folder cannot be written.
    """
    compiler = next(filter(None, map(shutil.which, COMPILERS)), None)
    if compiler is None:
        msg = f"no C++ compiler: none of {', '.join(COMPILERS)} in the PATH"
        raise NativeUnavailable(msg)
    try:
        library = folder / f"scan-{_fingerprint(compiler)}.so"
        if not library.exists():
            _build(compiler, library)
        return NativeScan(ctypes.CDLL(str(library)))
    except (OSError, subprocess.TimeoutExpired) as error:
        msg = f"the library for it cannot be made in {folder}: {error}"
        raise NativeUnavailable(msg) from error


def _fingerprint(compiler: str) -> str:
    """Digest everything that the library depends on."""
    version = _run([compiler, "--version"]).stdout
    parts = (SOURCE.read_text(), *FLAGS, compiler, version, _processor(), torch.__version__)
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


def _build(compiler: str, library: Path) -> None:
    library.parent.mkdir(parents=True, exist_ok=True, mode=0o700)
    number, name = tempfile.mkstemp(dir=library.parent, prefix=".building-", suffix=".so")
    os.close(number)
    building = Path(name)
    try:
        done = _run([compiler, *FLAGS, str(SOURCE), "-o", name])
        if done.returncode != 0:
            first = next(iter(done.stderr.splitlines()), "no message")
            msg = f"{compiler} fails with exit code {done.returncode}: {first}"
            raise NativeUnavailable(msg)
        building.chmod(0o700)
        building.replace(library)
    finally:
        building.unlink(missing_ok=True)


def _run(command: list[str]) -> subprocess.CompletedProcess[str]:
    return subprocess.run(
        command, capture_output=True, text=True, check=False, timeout=BUILD_LIMIT_S
    )


def _function(library: ctypes.CDLL, name: str, tensors: int) -> Callable[..., None]:
    """Declare a function: tensors, three tables of int64, two sizes, the number of threads."""
    function = library[name]
    sizes = [ctypes.c_int64] * 2
    function.argtypes = [*[ctypes.c_void_p] * (tensors + 3), *sizes, ctypes.c_int]
    function.restype = None
    return function


def _pointers(*tensors: Tensor) -> list[int]:
    return [tensor.data_ptr() for tensor in tensors]


def _shape(rows: Rows, x: Tensor) -> tuple[int, ...]:
    tables = _pointers(rows.first, rows.lengths, rows.step)
    return (*tables, rows.first.numel(), x.shape[1], torch.get_num_threads())
