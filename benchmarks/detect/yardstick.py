"""Published bugs before and after their fix: found before, silent after."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.detect.gates import alarms
from benchmarks.detect.shared import Held, SharedEngine
from fixtures.published import PUBLISHED, Published, published_pair
from parity.case import ParityCase
from parity.execution.passes import OUTPUT
from parity.pair import Build
from parity.run import Options

SEEDS = (0, 1)


def measure_published(bug: Published, seed: int) -> dict[str, Any]:
    """Judge a published bug before and after its fix."""
    started = time.process_time()
    before, after = (_judged(bug, mended, seed) for mended in (False, True))
    return {
        "source": "published", "key": f"published|{bug.name}|{seed}", "name": bug.name, "link": bug.link,
        "what": bug.what, "seed": seed, **before, "placed": before["first"] == bug.tap,
        "after": after["new"], "after_gates": after["gates"], "seconds": round(time.process_time() - started, 3),
    }  # fmt: skip


def _judged(bug: Published, mended: bool, seed: int) -> dict[str, Any]:
    held = Held(Build(dtype=torch.bfloat16, seed=seed), Options(seed=seed))
    engine = SharedEngine(published_pair(bug, mended), held)
    result = engine.result(ParityCase(bug.name, OUTPUT, "", False))
    new = [n for n, j in result.judged.items() if j.different]
    weights = engine.state_record(ParityCase(bug.name, OUTPUT, "", False))["weight_differences"]
    likely = list(engine.case_record(ParityCase(bug.name, new[0], "", False))["likely"]) if new else []
    return {
        "new": new, "first": new[0] if new else "", "fails": any(result.judged[n].fails for n in new),
        "status": "detected" if new else "missed", "gates": alarms(engine.outputs(engine.free(False), False)),
        "likely": likely, "weights": weights[:2],
        "named": bool(likely) and not likely[0].startswith("differs from"),
    }  # fmt: skip


def all_published() -> list[tuple[Published, int]]:
    """List every bug with every seed."""
    return [(bug, seed) for bug in PUBLISHED for seed in SEEDS]
