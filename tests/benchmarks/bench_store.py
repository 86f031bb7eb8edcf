"""State rows on their way to and from the disk: codec and RocksDB store, in one process.

    python -m tests.benchmarks.bench_store [--users N] [--rounds N] [--folder DIR] [--json FILE]

Rows have the layout of the default model (ring 50, 10 recommended, 2 blocks of 128 channels:
2.6 KB). The store is filled and closed first, so that reads find their rows in table files and
begin with an empty block cache of ours, though not of the operating system. Figures are rows per
second and microseconds a row: the median of all rounds, with the 10th and 90th percentile.
"""

import argparse
import json
import os
import platform
import statistics
import subprocess
import tempfile
import time
from collections.abc import Callable, Iterable
from importlib.metadata import version
from pathlib import Path

import numpy as np

from state.rocks import RocksStore
from state.row import RowLayout, append_items, ring_items

LAYOUT = RowLayout(ring=50, recommended=10, blocks=2, channels=128)


def machine() -> dict[str, str | int | None]:
    """What the figures were measured on."""
    commit = subprocess.run(
        ["git", "rev-parse", "--short", "HEAD"], capture_output=True, text=True, check=False
    )
    return {
        "machine": platform.platform(),
        "processor": platform.machine(),
        "cpus": os.cpu_count(),
        "python": platform.python_version(),
        "numpy": version("numpy"),
        "rocksdict": version("rocksdict"),
        "xxhash": version("xxhash"),
        "commit": commit.stdout.strip() or None,
    }


def measure(rows: int, calls: Iterable[Callable[[], object]]) -> dict[str, float]:
    """Time each call, of which each handles that many rows, after one to warm up."""
    us = []
    for call in calls:
        start_s = time.perf_counter()
        call()
        us.append((time.perf_counter() - start_s) * 1e6 / rows)
    us = us[1:]
    deciles = statistics.quantiles(us, n=10)
    median = statistics.median(us)
    return {
        "rows_per_s": round(1e6 / median),
        "us_per_row": round(median, 3),
        "us_per_row_p10": round(deciles[0], 3),
        "us_per_row_p90": round(deciles[-1], 3),
        "rounds": len(us),
    }


def codec_figures(rounds: int) -> dict[str, dict[str, float]]:
    """Encode, decode, and what is done with the rings, 1,000 rows at a time."""
    n = 1000
    random = np.random.default_rng(1)
    hidden = random.normal(size=(n, 2, 128)).astype(np.complex64)
    heads = LAYOUT.new_heads(n)
    users = np.repeat(np.arange(n), 60)
    append_items(heads, users, random.integers(1, 2**63, len(users), np.uint64))
    rows = LAYOUT.encode(heads, hidden)
    decoded = LAYOUT.decode(rows)
    if not np.array_equal(decoded.heads, heads) or not np.array_equal(decoded.hidden, hidden):
        raise SystemExit("the rows did not come back as they were")
    longer = RowLayout(ring=70, recommended=10, blocks=2, channels=128)
    one_each, items = np.arange(n), np.ones(n, np.uint64)
    return {
        "encode 1000": measure(n, [lambda: LAYOUT.encode(heads, hidden)] * rounds),
        "decode 1000": measure(n, [lambda: LAYOUT.decode(rows)] * rounds),
        "decode 1000 of another ring": measure(n, [lambda: longer.decode(rows)] * rounds),
        "ring_items 1000": measure(n, [lambda: ring_items(heads)] * rounds),
        "append_items 1000": measure(n, [lambda: append_items(heads, one_each, items)] * rounds),
    }


def store_figures(folder: Path, users: int, rounds: int) -> dict[str, dict[str, float]]:
    """Reads, writes and a scan of one partition with that many users."""
    random = np.random.default_rng(2)
    keys = [b"user-%08d" % i for i in range(users)]
    row = random.bytes(LAYOUT.row_bytes)
    store = RocksStore(folder)
    store.open(0)
    for at in range(0, users, 1000):
        store.write(0, [(key, key + row[len(key) :]) for key in keys[at : at + 1000]], at)
    store.close(0)
    store.open(0)

    def some(n: int) -> list[bytes]:
        return [keys[i] for i in random.choice(users, n, replace=False)]

    def get(asked: list[bytes]) -> Callable[[], object]:
        return lambda: store.get(0, asked)

    def write(n: int) -> Callable[[], object]:
        batch = [(key, random.bytes(LAYOUT.row_bytes)) for key in some(n)]
        return lambda: store.write(0, batch, n)

    unknown = [b"nobody-%d" % i for i in range(250)]
    figures = {
        "get 250": measure(250, (get(some(250)) for _ in range(rounds))),
        "get 250 again": measure(250, [get(some(250))] * rounds),
        "get 250 unknown": measure(250, [get(unknown)] * rounds),
        "scan": measure(users, [lambda: sum(1 for _ in store.scan(0))] * 4),
        "write 250": measure(250, (write(250) for _ in range(rounds))),
        "write 1000": measure(1000, (write(1000) for _ in range(rounds))),
    }
    start_s = time.perf_counter()
    store.close_all()
    figures["close"] = {"s": round(time.perf_counter() - start_s, 3)}
    return figures


def main() -> None:
    """Measure, print a table, write it as JSON if asked."""
    parser = argparse.ArgumentParser(description=__doc__.splitlines()[0])
    parser.add_argument("--users", type=int, default=40_000, help="rows in the store")
    parser.add_argument("--rounds", type=int, default=100, help="calls of each kind, 3 or more")
    parser.add_argument("--folder", type=Path, help="where the store is made; default: temporary")
    parser.add_argument("--json", type=Path, help="write the figures here")
    options = parser.parse_args()

    if options.rounds < 3:
        parser.error(f"--rounds: expected 3 or more (the first warms up), got {options.rounds}")
    figures = codec_figures(options.rounds)
    with tempfile.TemporaryDirectory(dir=options.folder) as folder:
        figures |= store_figures(Path(folder), options.users, options.rounds)

    result = {"row_bytes": LAYOUT.row_bytes, "users": options.users, **machine()}
    print(" ".join(f"{name}={value}" for name, value in result.items()))
    for name, figure in figures.items():
        print(f"{name:28}" + " ".join(f"{key}={value:,}" for key, value in figure.items()))
    if options.json:
        options.json.write_text(json.dumps(result | {"figures": figures}, indent=1) + "\n")


if __name__ == "__main__":
    main()
