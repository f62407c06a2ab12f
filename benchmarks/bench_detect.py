"""Which planted bugs are found, placed and named, and what the usual gates make of the same outputs.

Usage: python benchmarks/bench_detect.py [--jobs N] [--benign N] [--sample N] [--only WORD] [--check] [--table-only]

Writes benchmarks/results/detect.md and .json, and the table of README.md between its markers. Every run is a line of
build/detect.jsonl: interrupted, it goes on where it was; `--fresh` begins anew. `--sample 60` takes a few plants and
benign runs of the bundled pair and writes nothing. `--check` exits 1 where a goal is missed.
"""

from __future__ import annotations

import argparse
import multiprocessing
import os
import sys
import time
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Any

os.environ.setdefault("OMP_NUM_THREADS", "1")  # before torch: two processes on two cores

from benchmarks.detect.benign import quiet_runs
from benchmarks.detect.plan import sample, trials
from benchmarks.detect.rows import append_row, read_rows, write_rows
from benchmarks.detect.tables import missed_goals, page, summary_table
from benchmarks.detect.work import Task, done_by, task_key, tasks_of
from benchmarks.detect.yardstick import all_published
from fixtures.plants_drawn import EXPOSED

ROOT = Path(__file__).resolve().parents[1]
RAW = ROOT / "build" / "detect.jsonl"
RESULTS = ROOT / "benchmarks" / "results"
README = ROOT / "README.md"
BEGIN, END = "<!-- detection table: begin -->", "<!-- detection table: end -->"
Row = dict[str, Any]


def main() -> int:
    """Measure, print and write; return an exit code."""
    given = _arguments()
    if given.fresh:
        RAW.unlink(missing_ok=True)
    tasks = _wanted(given)
    known = [] if given.sample else read_rows(RAW)
    started = time.perf_counter()
    rows = known if given.table_only else [*known, *_measured(tasks, known, given)]
    whole = not (given.sample or given.only)
    text = page(rows, time.perf_counter() - started)
    print(text if not whole else "\n".join(summary_table(rows)))
    if whole:
        _write(rows, text)
    goals = missed_goals(rows)
    print(*(f"goal missed: {goal}" for goal in goals), sep="\n")
    return int(given.check and bool(goals))


def _arguments() -> argparse.Namespace:
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--jobs", type=int, default=2, help="processes, one thread each")
    parser.add_argument("--benign", type=int, default=2000, help="benign runs of the bundled pair")
    parser.add_argument("--sample", type=int, default=0, help="that many plants and as many benign runs, bundled pair")
    parser.add_argument("--only", default="", help="only tasks whose key has this in it; writes no result")
    parser.add_argument("--check", action="store_true", help="exit 1 where a goal is missed")
    parser.add_argument("--table-only", action="store_true", help="make the tables of what was measured already")
    parser.add_argument("--fresh", action="store_true", help="forget what was measured")
    return parser.parse_args()


def _wanted(given: argparse.Namespace) -> list[Task]:
    if given.sample:
        few = all_published()[:: max(1, 2 * len(all_published()) // given.sample)]
        return tasks_of(sample(given.sample), quiet_runs(given.sample), few[: given.sample // 4], [])
    found = tasks_of(trials(), quiet_runs(given.benign), all_published(), list(EXPOSED))
    return [t for t in found if given.only in task_key(t)]


def _measured(tasks: list[Task], known: Iterable[Row], given: argparse.Namespace) -> Iterator[Row]:
    """Run what is missing, in several processes, and say how far it is."""
    keys = {row["key"] for row in known}
    left = [t for t in tasks if task_key(t) not in keys]
    chunks = list(_chunks(left))
    started, seen = time.perf_counter(), 0
    with multiprocessing.get_context("spawn").Pool(given.jobs) as pool:
        for rows in pool.imap_unordered(done_by, chunks):
            for row in rows:
                seen += 1
                if not given.sample:
                    append_row(RAW, row)
                yield row
            _progress(seen, len(left), time.perf_counter() - started)


def _chunks(tasks: list[Task], most: int = 12) -> Iterator[list[Task]]:
    """Cut tasks into pieces that share a reference, the long ones first."""
    chunk: list[Task] = []
    for task in tasks:
        if chunk and (task.group != chunk[0].group or len(chunk) >= most):
            yield chunk
            chunk = []
        chunk.append(task)
    if chunk:
        yield chunk


def _progress(seen: int, total: int, seconds: float) -> None:
    rate = seen / seconds
    left = (total - seen) / rate
    print(f"{seen} of {total} runs, {rate:.2f} a second, {left / 60:.1f} min left", file=sys.stderr, flush=True)


def _write(rows: list[Row], text: str) -> None:
    RESULTS.mkdir(exist_ok=True)
    (RESULTS / "detect.md").write_text(text, encoding="utf-8")
    write_rows(RESULTS / "detect.json", rows)
    before, found, rest = README.read_text(encoding="utf-8").partition(BEGIN)
    if found:
        after = rest.partition(END)[2]
        table = "\n".join(summary_table(rows))
        README.write_text(f"{before}{BEGIN}\n{table}\n{END}{after}", encoding="utf-8")


if __name__ == "__main__":
    sys.exit(main())
