"""What recording costs, and what a cached reference saves, on the bundled pair.

Usage: python benchmarks/bench_suite.py [--repeats N] [--size NAME] [--check]     (writes benchmarks/results/suite.md)

Recording: a shadowed reference pass whose values are streamed to disk, against the same pass with its values kept in
memory plus the time to write the same bytes to the same disk; medians over interleaved repeats in one process. Cache:
one state judged with one model at a time, the reference's passes computed, and found. `--check` exits 1 above a limit.
"""

from __future__ import annotations

import argparse
import platform
import shutil
import statistics
import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

import torch

from fixtures.pairs.longcat import PAIR
from parity.case import cases_of
from parity.engine import Engine, Settings
from parity.execution.trace import Trace
from parity.io.passes import PassWriter
from parity.recorder import Plan, ReferenceAtWork
from parity.references import ReferenceSources
from parity.run import Options

RESULT = Path(__file__).parent / "results" / "suite.md"
LIMIT = 1.15
"""Of a recorded pass over the same pass plus writing its bytes."""
MB = 1e6


class Passes:
    """The two shadowed passes of the reference that are recorded most: in lockstep, and a twin's.

    Args:
        size: of the pair. folder: where recordings go.
    """

    def __init__(self, size: str, folder: Path) -> None:
        settings = Settings(size=size)
        self.plan = Plan(PAIR, settings.build(PAIR), Options(), ((False, ""),), {})
        self.live = ReferenceAtWork(self.plan).live
        (self.draw,) = self.plan.draws()
        self.live.learn_constants(self.draw)
        self.folder = folder
        self.trace = self.live.trace(self.draw, {})

    def lockstep(self) -> Trace:
        """Run the pass in lockstep."""
        return self.live.trace(self.draw, {})

    def twin(self) -> Trace:
        """Run a twin's pass."""
        return self.live.twin(self.draw, {}, self.trace, 0)

    def recorded(self, name: str, run: Callable[[], Trace]) -> None:
        """Run a pass, its values streamed to disk as `parity record` does."""
        writer = PassWriter(self.folder / name, low=name == "lockstep")
        self.live.sinks = lambda _: writer
        try:
            trace = run()
        finally:
            self.live.sinks = lambda _: None
        writer.close(trace)

    def written(self, name: str) -> list[bytes]:
        """Return the content of every file of a recorded pass."""
        return [file.read_bytes() for file in sorted((self.folder / name).iterdir())]


def write(folder: Path, contents: list[bytes]) -> None:
    """Write files, as plainly as can be."""
    folder.mkdir(exist_ok=True)
    for number, content in enumerate(contents):
        with (folder / f"{number}.new").open("wb") as file:
            file.write(content)
        (folder / f"{number}.new").replace(folder / str(number))


def seconds_of(run: Callable[[], object]) -> float:
    """Return how long a call takes."""
    started = time.perf_counter()
    run()
    return time.perf_counter() - started


def measure_recording(passes: Passes, name: str, run: Callable[[], Trace], repeats: int) -> dict[str, float]:
    """Return median seconds of a pass in memory, of writing its bytes, and of the pass recorded; and the bytes."""
    passes.recorded(name, run)
    contents = passes.written(name)
    runs: dict[str, Callable[[], object]] = {
        "pass": run,
        "write": lambda: write(passes.folder / "plain", contents),
        "recorded": lambda: passes.recorded(name, run),
    }
    taken: dict[str, list[float]] = {kind: [] for kind in runs}
    for _ in range(repeats):
        for kind, timed in runs.items():
            taken[kind].append(seconds_of(timed))
    found = {kind: statistics.median(times) for kind, times in taken.items()}
    return {**found, "bytes": float(sum(map(len, contents)))}


def judge(size: str, sources: ReferenceSources) -> None:
    """Judge one LoRA state of the pair."""
    settings = Settings(size=size, sources=sources)
    cases = [c for c in cases_of(PAIR, settings.build(PAIR)) if not c.lora]
    engine = Engine({PAIR.name: PAIR}, settings)
    engine.expect(cases)
    for case in cases:
        engine.case_record(case)
    engine.close()


def measure_cache(size: str, folder: Path, repeats: int) -> dict[str, float]:
    """Return median seconds of a state with the reference resident, recorded first, and found in the cache."""
    cache = folder / "cache"
    one = ReferenceSources(one_resident=True, cache=cache)
    judge(size, ReferenceSources())
    taken: dict[str, list[float]] = {"together": [], "computed": [], "cached": []}
    for _ in range(repeats):
        shutil.rmtree(cache, ignore_errors=True)
        taken["together"].append(seconds_of(lambda: judge(size, ReferenceSources())))
        taken["computed"].append(seconds_of(lambda: judge(size, one)))
        taken["cached"].append(seconds_of(lambda: judge(size, one)))
    return {kind: statistics.median(times) for kind, times in taken.items()}


def ratio_of(found: dict[str, float]) -> float:
    """Return a recorded pass over the pass and the writing."""
    return found["recorded"] / (found["pass"] + found["write"])


def recording_row(name: str, found: dict[str, float]) -> str:
    """Return a row of the table of recording."""
    times = " | ".join(f"{1e3 * found[kind]:.0f}" for kind in ("pass", "write", "recorded"))
    return f"| {name} | {found['bytes'] / MB:,.0f} | {times} | {ratio_of(found):.2f} | {LIMIT} |"


PAGE = """\
# What recording costs, and what a cached reference saves

Made by `make bench-suite`: {where}; the bundled pair, size {size}, bfloat16, LoRA off.

Time in ms of one shadowed pass of the reference, medians over {repeats} interleaved repeats in one run. Write: the same
bytes, in as many files, to the same disk. Ratio: recorded over pass + write.

| pass | MB | pass | write | recorded | ratio | limit |
|---|---|---|---|---|---|---|
{rows}

Seconds of one judged state, models built anew each time. Computed: one model at a time, the cache empty. Cached: the
reference's passes found in the cache. Medians over {few} repeats.

| both resident | one at a time, computed | one at a time, cached | saved |
|---|---|---|---|
| {together:.1f} | {computed:.1f} | {cached:.1f} | {saved:.0%} |
"""


def page(rows: list[str], cache: dict[str, float], size: str, repeats: int, few: int) -> str:
    """Return the page that is written."""
    machine = f"{platform.machine()}, {torch.backends.cpu.get_cpu_capability()}, {torch.get_num_threads()} threads"
    where = f"torch {torch.__version__}, {machine}"
    saved = 1 - cache["cached"] / cache["computed"]
    return PAGE.format(
        where=where, size=size, repeats=repeats, few=few, rows="\n".join(rows), saved=saved, **cache
    )  # fmt: skip


def main() -> int:
    """Measure, print and write; return an exit code."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").splitlines()[0])
    parser.add_argument("--repeats", type=int, default=9)
    parser.add_argument("--size", default="small", choices=PAIR.sizes[:2])
    parser.add_argument("--check", action="store_true", help="exit 1 where recording is above its limit")
    given = parser.parse_args()
    torch.set_num_threads(2)
    few = max(1, given.repeats // 3)
    with tempfile.TemporaryDirectory(prefix="parity-bench-") as scratch:
        passes = Passes(given.size, Path(scratch))
        kinds = {"lockstep": passes.lockstep, "twin": passes.twin}
        found = {name: measure_recording(passes, name, run, given.repeats) for name, run in kinds.items()}
        cache = measure_cache(given.size, Path(scratch), few)
    text = page([recording_row(*row) for row in found.items()], cache, given.size, given.repeats, few)
    RESULT.write_text(text, encoding="utf-8")
    print(text)
    return int(given.check and any(ratio_of(one) > LIMIT for one in found.values()))


if __name__ == "__main__":
    sys.exit(main())
