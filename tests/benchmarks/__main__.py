"""Every benchmark in turn, never two at once, each in a fresh process.

    python -m tests.benchmarks [--output DIR] [NAME ...]

Writes DIR/<name>.json for each (default: .lrurec/benchmarks), and DIR/<name>.svg for those that
draw. Exit code 1 where one failed; the others run all the same.
"""

import argparse
import subprocess
import sys
from pathlib import Path

ROOT = Path(__file__).parents[2]


def benchmark_names() -> list[str]:
    """Names of the benchmarks: `bench_<name>.py` in this folder."""
    return sorted(
        path.stem.removeprefix("bench_") for path in Path(__file__).parent.glob("bench_*")
    )


def draws(name: str) -> bool:
    """Whether a benchmark takes --plot."""
    path = Path(__file__).parent / f"bench_{name}.py"
    return '"--plot"' in path.read_text()


def main() -> int:
    """Run them; 0, or 1 where one failed."""
    names = benchmark_names()
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("names", nargs="*", metavar="NAME", help=f"of {', '.join(names)}")
    parser.add_argument("--output", type=Path, default=ROOT / ".lrurec" / "benchmarks")
    options = parser.parse_args()
    unknown = [name for name in options.names if name not in names]
    if unknown:
        parser.error(f"no benchmark {unknown[0]!r}; there are {', '.join(names)}")
    output = options.output.resolve()
    output.mkdir(parents=True, exist_ok=True)
    failed = []
    for name in options.names or names:
        print(f"\n== {name}", flush=True)
        report = output / f"{name}.json"
        plot = output / f"{name}.svg"
        for path in (report, plot):
            path.unlink(missing_ok=True)  # what an earlier run wrote must not pass for new
        module = f"tests.benchmarks.bench_{name}"
        arguments = [sys.executable, "-m", module, "--json", str(report)]
        if draws(name):
            arguments += ["--plot", str(plot)]
        if subprocess.run(arguments, cwd=ROOT, check=False).returncode != 0:
            failed.append(name)
    print(f"\nfigures and plots in {output}")
    if failed:
        print(f"failed: {', '.join(failed)}", file=sys.stderr)
    return int(bool(failed))


if __name__ == "__main__":
    sys.exit(main())
