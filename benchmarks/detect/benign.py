"""Harmless changes of the bundled pair: whatever differs here is a false alarm, at any seed and shape."""

from __future__ import annotations

import math
import time
from dataclasses import dataclass
from typing import Any

from benchmarks.detect.gates import alarms
from benchmarks.detect.pairs import SHAPES, small
from benchmarks.detect.shared import Held, SharedEngine
from benchmarks.detect.trials import dtype_of
from fixtures.plants import PLANTS
from parity.case import ParityCase
from parity.execution.passes import OUTPUT
from parity.numerics.ratios import tests_of
from parity.pair import Build, ModelPair
from parity.run import Options, StateResult

CHANGES = ("", *(n for n, p in PLANTS.items() if p.kind == "benign"))
"""Seeds and shapes alone, and every benign plant on top."""
COUPLES = (("attention_math", "row_chunks"), ("attention_flash", "fused_qkv"), ("keys_reversed", "split_k"))
"""Two at once, as a port has them."""


@dataclass(frozen=True)
class Quiet:
    """One benign run: the change, dtype, shape, seed of weights and inputs."""

    change: str
    dtype: str
    shape: int
    seed: int

    @property
    def key(self) -> str:
        """What makes it unique."""
        return f"benign|{self.change}|{self.dtype}|{self.shape}|{self.seed}"

    @property
    def held_out(self) -> bool:
        """Whether it is of the third that calibrates nothing: every third combination of seed and shape."""
        return (self.seed + self.shape) % 3 == 0


def quiet_runs(count: int) -> list[Quiet]:
    """List runs, all changes of one reference after another."""
    changes = [*CHANGES, *("+".join(c) for c in COUPLES)]
    runs: list[Quiet] = []
    for number in range(count):
        dtype = ("bfloat16", "float32")[number % 2]
        shape = (number // 2) % len(SHAPES)
        names = [c for c in changes if _expressible(c, dtype)]
        runs += [Quiet(name, dtype, shape, number) for name in names]
        if len(runs) >= count:
            break
    return runs[:count]


def _expressible(change: str, dtype: str) -> bool:
    return all(dtype_of(dtype) in PLANTS[n].dtypes for n in change.split("+") if n)


def changed(pair: ModelPair, change: str) -> ModelPair:
    """Return the pair with benign changes."""
    for name in filter(None, change.split("+")):
        pair = PLANTS[name].apply(pair)
    return pair


class Calm:
    """Measures benign runs; those of one seed share the reference."""

    def __init__(self) -> None:
        self._group: Any = None
        self._held: Held | None = None

    def measure(self, run: Quiet) -> dict[str, Any]:
        """Run a benign change and return its row."""
        started = time.process_time()
        group = (run.dtype, run.shape, run.seed)
        if self._group != group or self._held is None:
            build = Build(size="tiny", dtype=dtype_of(run.dtype), seed=run.seed)
            self._group, self._held = group, Held(build, Options(seed=run.seed, singles=0))
        engine = SharedEngine(changed(small("longcat", f"shape{run.shape}"), run.change), self._held)
        result = engine.result(ParityCase("longcat", OUTPUT, "", False))
        gates = alarms(engine.outputs(engine.free(False), False))
        return {
            "source": "benign", "key": run.key, "name": run.change or "none", "dtype": run.dtype, "shape": run.shape,
            "seed": run.seed, "held_out": run.held_out, "gates": gates, **_verdicts(result), **_tests(result),
            "seconds": round(time.process_time() - started, 3),
        }  # fmt: skip


def _verdicts(result: StateResult) -> dict[str, Any]:
    judged = result.judged
    near = [n.ratio for n in result.explained.nearest.values() if not n.kernel]
    return {
        "cases": len(judged), "different": [n for n, j in judged.items() if j.different],
        "fails": [n for n, j in judged.items() if j.fails], "amber": [n for n, j in judged.items() if j.amber],
        "not_judged": sum(j.cls.value == "not judged" for j in judged.values()),
        "nearest": round(min(near), 4) if near else None, "observer": bool(result.observer),
    }  # fmt: skip


def _tests(result: StateResult) -> dict[str, Any]:
    """Count ratio tests, and give the largest distances beyond the margin in standard errors.

    Only bits that differ make a test: where both sides are bit-exact there is nothing to alarm.
    """
    limits = result.limits
    tests = [t for f in result.facts.values() for t in tests_of(f, [d[f.name] for d in result.draws], limits)]
    live = [t for t in tests if not all(d[t.tap].bit_exact for d in result.draws)]
    beyond = sorted((z for t in live if math.isfinite(z := _beyond(t))), reverse=True)
    return {
        "tests": len(tests), "live_tests": len(live), "beyond": [round(z, 3) for z in beyond[:8]],
        "exceeding": sum(bool(t.exceeds(limits.z)) for t in live),
    }  # fmt: skip


def _beyond(test: Any) -> float:
    """Return by how many standard errors a test is beyond its margin, in the direction that is farther."""
    if not test.se:
        return -math.inf
    up = min((test.up - test.margin) / test.se, 2 * test.paired_up)
    down = min((-test.down - test.margin) / test.se, 2 * test.paired_down)
    found: float = max(up, down)
    return found
