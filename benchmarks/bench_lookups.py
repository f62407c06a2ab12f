"""What 1,470 look-ups cost: 48 blocks x 5 taps + 5, LoRA off and on, 3 inputs, collected and run in one process.

Usage: python benchmarks/bench_lookups.py [--repeats N] [--check]     (writes benchmarks/results/lookups.md)

Forwards are replaced by synthetic results; building the models and the synthetic results is taken off. What is left
is pytest itself and the plugin. The same number of empty tests is run beside it. `--check` exits 1 above the limit.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import sys
import tempfile
from pathlib import Path

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "lookups.md"
LIMIT = 4.0
CASES = (48 * 5 + 5) * 2 * 3

PAIR = """
from fixtures.tiny import tiny_inputs, tiny_pair
PAIR = tiny_pair("many", depth=48, width=8, variants={"second": tiny_inputs, "third": tiny_inputs})
"""
SUITE = """
def test_parity(case, parity_check):
    parity_check(case)
"""
EMPTY = f"""
import pytest

@pytest.mark.parametrize("number", range({CASES}))
def test_nothing(number):
    pass
"""
TIMED = """
import sys, time
import pytest
import parity.engine as engine
from fixtures.synthetic import synthetic_state

spent = 0.0

def counted(function):
    def run(*args, **kwargs):
        global spent
        started = time.perf_counter()
        try:
            return function(*args, **kwargs)
        finally:
            spent += time.perf_counter() - started
    return run

engine.run_state, engine.PairSession = counted(synthetic_state), counted(engine.PairSession)
engine.about = counted(engine.about)
started = time.perf_counter()
code = pytest.main(["-q", "-p", "no:cacheprovider", *sys.argv[1:]])
print("MEASURED", int(code), time.perf_counter() - started - spent, spent)
"""


def measure(folder: Path, *arguments: str) -> tuple[float, float]:
    """Run pytest in a fresh process; return seconds without and with what stands for forwards."""
    environment = {**os.environ, "PYTHONPATH": str(ROOT)}
    command = [sys.executable, "timed.py", *arguments]
    done = subprocess.run(command, cwd=folder, env=environment, capture_output=True, text=True, check=False)
    found = [line.split() for line in done.stdout.splitlines() if line.startswith("MEASURED")]
    if not found or found[0][1] != "0":
        raise SystemExit(done.stdout[-2000:] + done.stderr[-2000:])
    return float(found[0][2]), float(found[0][3])


def main() -> int:
    """Measure, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--repeats", type=int, default=3)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    with tempfile.TemporaryDirectory() as name:
        folder = Path(name)
        (folder / "pairs").mkdir()
        files = {"pairs/many.py": PAIR, "test_suite.py": SUITE, "test_empty.py": EMPTY, "timed.py": TIMED}
        for file, text in {**files, "pytest.ini": "[pytest]\nparity_pairs = pairs\n"}.items():
            (folder / file).write_text(text)
        rows = {
            "collect only": min(measure(folder, "--collect-only", "test_suite.py")[0] for _ in range(options.repeats)),
            "collect and run": min(measure(folder, "test_suite.py")[0] for _ in range(options.repeats)),
            "as many empty tests": min(measure(folder, "test_empty.py")[0] for _ in range(options.repeats)),
        }
    text = table(rows, options.repeats)
    sys.stdout.write(text)
    RESULT.write_text(text)
    return int(options.check and rows["collect and run"] > LIMIT)


def table(rows: dict[str, float], repeats: int) -> str:
    """Word the result."""
    lines = [
        "# Look-ups",
        "",
        f"{CASES:,} cases (48 blocks x 5 taps + 5, LoRA off and on, 3 inputs) in one process, forwards taken off;",
        f"limit {LIMIT:.0f} s. Best of {repeats}; Python {platform.python_version()}, {os.cpu_count()} CPUs.",
        "Made by `python benchmarks/bench_lookups.py`.",
        "",
        "| what | seconds | ms a case |",
        "|---|---|---|",
        *(f"| {what} | {seconds:.2f} | {1000 * seconds / CASES:.2f} |" for what, seconds in rows.items()),
    ]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
