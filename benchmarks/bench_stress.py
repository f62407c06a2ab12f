"""Run the suite many times in one process and see whether memory grows.

Usage: python benchmarks/bench_stress.py [--runs N] [--check]     (writes benchmarks/results/stress.md)

Each run is `pytest.main` over three pairs: one healthy with its LoRA off and on, one with a planted bug (whose impact
takes passes of its own), one whose model raises half way. `--check` exits 1 where memory grows by more than the limit.
"""

from __future__ import annotations

import argparse
import contextlib
import gc
import io
import os
import platform
import sys
import tempfile
from pathlib import Path

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "stress.md"
LIMIT = 0.1
"""MB a run, from a quarter of the runs on: a tenth of the smallest state's activations."""

HEAD = "from fixtures.tiny import edited, gelu_erf, output_of, tiny_pair\n"
PAIRS = {
    "healthy": "PAIR = tiny_pair('healthy', width=64)\n",
    "faulty": "PAIR = edited(tiny_pair('faulty', width=64, lora=None), gelu_erf)\n",
    "raising": (
        "def fail(y):\n    raise RuntimeError('no kernel')\n"
        "PAIR = edited(tiny_pair('raising', width=64, lora=None), output_of('head', fail))\n"
    ),
}
SUITE = "def test_parity(case, parity_check):\n    parity_check(case)\n"
EXPECTED = pytest.ExitCode.TESTS_FAILED


def main() -> int:
    """Run, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        _write_project(Path(name))
        os.chdir(name)
        rows = measure(options.runs)
        os.chdir(ROOT)
    text = table(rows)
    sys.stdout.write(text)
    RESULT.write_text(text)
    return int(options.check and growth(rows) > LIMIT)


def _write_project(folder: Path) -> None:
    (folder / "pairs").mkdir()
    files = {f"pairs/{pair}.py": HEAD + text for pair, text in PAIRS.items()}
    for file, text in {**files, "test_suite.py": SUITE, "pytest.ini": "[pytest]\nparity_pairs = pairs\n"}.items():
        (folder / file).write_text(text)


def measure(runs: int) -> list[tuple[int, float, int]]:
    """Return (run, resident memory in MB, objects the garbage collector knows) at some of the runs."""
    shown = {run for run in (1, 10, 50, 100, 200, runs // 4, runs) if 1 <= run <= runs}
    rows = []
    for run in range(1, runs + 1):
        with contextlib.redirect_stdout(io.StringIO()) as out:
            code = pytest.main(["-q", "-p", "no:cacheprovider", "--import-mode=importlib"])
        if code != EXPECTED:
            raise SystemExit(f"run {run} ended with {code!r}\n{out.getvalue()[-2000:]}")
        if run in shown:
            gc.collect()
            rows.append((run, resident(), len(gc.get_objects())))
    return rows


def resident() -> float:
    """Return this process's resident memory in MB."""
    pages = int(Path("/proc/self/statm").read_text().split()[1])
    return pages * os.sysconf("SC_PAGE_SIZE") / 1e6


def growth(rows: list[tuple[int, float, int]]) -> float:
    """Return MB a run from a quarter of the runs on: before that, caches of torch and Python fill."""
    last = rows[-1]
    first = next((row for row in rows if row[0] >= last[0] // 4), rows[0])
    return (last[1] - first[1]) / max(1, last[0] - first[0])


def table(rows: list[tuple[int, float, int]]) -> str:
    """Word the result."""
    lines = [
        "# Stress",
        "",
        f"{rows[-1][0]} runs of the suite in one process: three pairs, one with a planted bug, one that raises.",
        f"Growth {growth(rows):.3f} MB a run from a quarter of the runs on (limit {LIMIT}).",
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads.",
        "Made by `python benchmarks/bench_stress.py`.",
        "",
        "| after run | resident MB | objects |",
        "|---|---|---|",
        *(f"| {run} | {memory:.1f} | {objects:,} |" for run, memory, objects in rows),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
