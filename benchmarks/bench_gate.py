"""Run the gate many times on the healthy bundled pair, each time on other inputs, and see whether it ever fails.

Usage: python benchmarks/bench_gate.py [--runs N] [--check]     (writes benchmarks/results/gate.md)

The first run, at seed 0, is accepted as the baseline. Every further one is `pytest --parity-baseline` in this process,
with the next seed. A gate that fails here would fail a pull request by chance. `--check` exits 1 where one did.
"""

from __future__ import annotations

import argparse
import contextlib
import io
import platform
import sys
import tempfile
import time
from collections import Counter
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import pytest
import torch

ROOT = Path(__file__).resolve().parents[1]
RESULT = ROOT / "benchmarks" / "results" / "gate.md"
SELECTED = (
    "-q", "-p", "no:cacheprovider", "-m", "parity", "--parity-pair", "longcat",
    "-k", "not drawn_inputs and not read_alike",
)  # fmt: skip


@dataclass
class Gated:
    """One run: its seed, exit code, seconds, and what the gate said."""

    seed: int
    code: int
    seconds: float
    gate: dict[str, Any]

    @property
    def exact(self) -> int:
        """Bit-exact cases."""
        return sum(int(state["bit_exact"]) for state in self.gate["states"])


def main() -> int:
    """Run, print and write the table."""
    parser = argparse.ArgumentParser(description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter)
    parser.add_argument("--runs", type=int, default=200)
    parser.add_argument("--check", action="store_true")
    options = parser.parse_args()
    sys.path.insert(0, str(ROOT))
    with tempfile.TemporaryDirectory() as name:
        runs = list(measured(options.runs, Path(name)))
    text = table(runs)
    sys.stdout.write(text)
    RESULT.write_text(text)
    return int(options.check and any(run.code for run in runs))


def measured(count: int, folder: Path) -> Iterator[Gated]:
    """Accept a run at seed 0, then gate as many others; one line a run on stderr."""
    from parity.gate.accept import Acceptance, accept
    from parity.io.baselines import change_baseline
    from parity.io.records import read_record
    from parity.known import today

    baseline, report = folder / "baseline.json", folder / "reports"
    code, shown = _pytest("--parity-report", str(report))
    if code:
        raise SystemExit(f"the healthy pair fails without a gate\n{shown}")
    accepted = read_record(report / "parity.json")
    change_baseline(baseline, lambda before: accept(before, accepted, Acceptance(), today()).baseline)
    for seed in range(1, count + 1):
        started = time.perf_counter()
        code, shown = _pytest(
            "--parity-report", str(report), "--parity-baseline", str(baseline), "--parity-seed", str(seed)
        )
        found = Gated(seed, code, time.perf_counter() - started, read_record(report / "parity.json")["gate"])
        sys.stderr.write(f"seed {seed}: {'passed' if not code else 'FAILED'}, {found.exact} bit-exact\n")
        sys.stderr.write(shown if code else "")
        yield found


def _pytest(*options: str) -> tuple[int, str]:
    with contextlib.redirect_stdout(io.StringIO()) as out:
        code = pytest.main([*SELECTED, *options, str(ROOT / "tests" / "suite")])
    return int(code), out.getvalue()[-4000:]


def table(runs: list[Gated]) -> str:
    """Word the result."""
    failed = [run for run in runs if run.code]
    kinds = Counter(found["kind"] for run in runs for found in run.gate["findings"])
    states = runs[0].gate["states"]
    exact = sum(int(state["baseline_bit_exact"]) for state in states)
    cases = sum(int(state["baseline_judged"]) for state in states)
    lines = [
        "# The gate on a healthy pair",
        "",
        f"{len(runs)} runs of the bundled pair in one process, each on inputs of another seed, held against the",
        f"accepted state of seed 0 ({cases} cases judged, {exact} of them bit-exact).",
        f"Python {platform.python_version()}, torch {torch.__version__}, {torch.get_num_threads()} threads.",
        "Made by `python benchmarks/bench_gate.py`.",
        "",
        "| runs | failed | told and not failed | bit-exact cases | s a run |",
        "|---|---|---|---|---|",
        f"| {len(runs)} | {len(failed)} | {', '.join(f'{n} {kind}' for kind, n in kinds.items()) or 'nothing'} | "
        f"{min(r.exact for r in runs)} to {max(r.exact for r in runs)} of {cases} | "
        f"{sum(r.seconds for r in runs) / len(runs):.1f} |",
    ]
    lines += [f"\nFailed at seed {run.seed}: {run.gate['findings'][:3]}" for run in failed]
    return "\n".join(lines) + "\n"


if __name__ == "__main__":
    sys.exit(main())
