"""What the kernels for CUDA become for a real GPU: compiled for an H100, whatever is here."""

import re
import subprocess
import sys

import pytest

COMPILE = """
import sys
import triton
from triton.backends.compiler import GPUTarget
from triton.compiler import ASTSource
from models.scan import triton_kernels

kernel = getattr(triton_kernels, sys.argv[1])
whole = sys.argv[2] == "whole"
chosen = dict(every_row=whole, with_lam=whole, block=64, ahead=triton_kernels.AHEAD)
consts = {name: value for name, value in chosen.items() if name in kernel.arg_names}
kinds = dict.fromkeys(kernel.arg_names, "*fp32") | dict.fromkeys(triton_kernels.TABLES, "*i64")
kinds |= {"channels": "i32"} | dict.fromkeys(consts, "constexpr")
aligned = {
    (place,): [["tt.divisibility", 16]]
    for place, name in enumerate(kernel.arg_names) if kinds[name] in ("*fp32", "i32")
}
source = ASTSource(fn=kernel, signature=kinds, constexprs=consts, attrs=aligned)
options = {"num_warps": triton_kernels.warps(64), "enable_fp_fusion": True}
made = triton.compile(source, target=GPUTarget("cuda", 90, 32), options=options)
print(made.metadata.shared)
print(made.asm["ptx"])
"""
"""In a process of its own: here the kernels may be interpreted ones."""


@pytest.mark.skipif(sys.platform != "linux", reason="Triton is for Linux")
@pytest.mark.parametrize("form", ["whole", "ends only"])
@pytest.mark.parametrize(("kernel", "reads"), [("_advance", 1), ("_retreat", 2)])
def test_a_step_waits_for_nothing_but_memory_and_asks_for_many_rows_at_once(
    kernel: str, reads: int, form: str
) -> None:
    """No shared memory and no barrier; a stretch reads whole numbers, all before it writes any.

    So do the forms for chunks, which write less: what does not go into lambda's gradient needs no
    states.
    """
    reads = reads if form == "whole" else 1
    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", COMPILE, kernel, form],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.returncode == 0, done.stderr
    shared_bytes, _, ptx = done.stdout.partition("\n")
    assert shared_bytes == "0"
    assert "bar.sync" not in ptx
    accesses = re.findall(r"(ld|st)\.global\.v2\.b32", ptx)
    in_a_row = max(len(run) for run in "".join(a[0] for a in accesses).split("s"))
    assert in_a_row >= 8 * reads


def test_where_triton_does_not_run_the_loop_does() -> None:
    """One line says why: without a compiler, say, its first launch fails."""
    code = (
        "import os; os.environ['CUDA_VISIBLE_DEVICES'] = ''\n"
        "import logging, torch; from models.scan.recurrence import backend_for\n"
        "logging.basicConfig(format='%(message)s')\n"
        "print([backend_for(torch.device('cuda')).name for _ in range(2)])\n"
    )

    done = subprocess.run(
        [sys.executable, "-W", "ignore", "-c", code],
        capture_output=True,
        text=True,
        check=False,
        timeout=120,
    )

    assert done.stdout == "['loop', 'loop']\n", done.stderr
    assert done.stderr.count("\n") == (sys.platform == "linux")
    assert "no Triton: " in done.stderr or sys.platform != "linux"
