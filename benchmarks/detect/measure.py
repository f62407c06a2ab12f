"""What came of one trial: detected, placed, named, by what, in which time; and what the usual gates say."""

from __future__ import annotations

import re
import time
from collections.abc import Iterable, Mapping
from dataclasses import asdict, dataclass
from typing import Any

from benchmarks.detect.gates import alarms
from benchmarks.detect.pairs import small
from benchmarks.detect.shared import Held, SharedEngine, bits_alike, distances
from benchmarks.detect.trials import Planted, Trial, dtype_of, planted
from parity.case import ParityCase
from parity.errors import ModelFailed, ParityError
from parity.execution.passes import OUTPUT
from parity.execution.trace import Trace
from parity.pair import Build
from parity.run import Options, StateResult

SAME_FUNCTION = 1e-12
"""Of an equivalent mutant: relative distance of its native's float64 values from the healthy one's, anywhere."""

Row = dict[str, Any]


@dataclass
class _Healthy:
    """The pair without a plant: which taps differ already, and the native's own values."""

    different: frozenset[str]
    free: Trace


class Bench:
    """Measures trials of one group (pair, dtype, inputs, seed) after the other; a reference is shared in a group."""

    def __init__(self) -> None:
        self._group: Any = None
        self._held: Held | None = None
        self._healthy: dict[bool, _Healthy] = {}

    def measure(self, trial: Trial) -> Row:
        """Run a trial and return its row."""
        held = self._open(trial)
        pair = small(trial.pair, trial.inputs)
        plant = planted(trial, pair)
        healthy = self._healthy_run(trial, held, plant.lora)
        started = time.process_time()
        row = {**asdict(trial), "key": trial.key, "kind": plant.kind, "category": plant.category,
               "expect": list(plant.expect), "lora": plant.lora}  # fmt: skip
        try:
            found = _found(plant, SharedEngine(plant.pair, held), healthy)
        except ModelFailed:
            raise  # a plant that does not run is a mistake of the benchmark
        except ParityError as error:
            found = _refused(plant, error)
        return {**row, **found, "seconds": round(time.process_time() - started, 3)}

    def _open(self, trial: Trial) -> Held:
        if self._group != trial.group or self._held is None:
            build = Build(size="tiny", dtype=dtype_of(trial.dtype), seed=trial.seed)
            self._group, self._healthy = trial.group, {}
            self._held = Held(build, Options(seed=trial.seed, singles=0))
        return self._held

    def _healthy_run(self, trial: Trial, held: Held, lora: bool) -> _Healthy:
        if lora not in self._healthy:
            engine = SharedEngine(small(trial.pair, trial.inputs), held)
            result = engine.result(ParityCase(trial.pair, OUTPUT, "", lora))
            different = frozenset(n for n, j in result.judged.items() if j.different)
            self._healthy[lora] = _Healthy(different, engine.free(lora))
        return self._healthy[lora]


def _refused(plant: Planted, error: ParityError) -> Row:
    """A run that stops with an error is a found bug; its text has to name it."""
    text = str(error)
    words = plant.named or r"native"
    return {
        "status": "detected", "by": "error", "fails": True, "placed": None, "named": bool(re.search(words, text)),
        "proved": False, "first": "", "likely": [text.splitlines()[0][:300]], "gates": None, "explained": 0.0,
    }  # fmt: skip


def _found(plant: Planted, engine: SharedEngine, healthy: _Healthy) -> Row:
    free = engine.free(plant.lora)
    base = {"gates": alarms(engine.outputs(free, plant.lora)), "first": "", "by": "", "likely": []}
    taps, inputs = engine.live.taps, engine.live.inputs(engine.held.options.seed)
    if bits_alike(healthy.free, free, taps, inputs):
        return {**base, "status": "no effect"}
    apart = distances(healthy.free, free, taps, inputs)
    result = engine.result(ParityCase(engine.pair.name, OUTPUT, "", plant.lora))
    new = _new(result, healthy.different, plant.kind)
    row = {**base, "apart": max(apart.values()), "explained": round(result.seconds.get("explained", 0.0), 3),
           "new": new[:6], "tests": sum(j.tests for j in result.judged.values())}  # fmt: skip
    if plant.kind != "precision" and max(apart.values()) <= SAME_FUNCTION:
        alarmed = [n for n in new if result.judged[n].logic]
        return {**row, "status": "equivalent", "alarm": bool(alarmed)}
    if not new:
        return {**row, "status": _unseen(plant, result, healthy.different)}
    return {**row, "status": "detected", **_told(plant, engine, result, new)}


def _new(result: StateResult, before: Iterable[str], kind: str) -> list[str]:
    """List taps that differ, and did not without the plant; another function is always new."""
    known = set(before)
    return [n for n, j in result.judged.items() if j.logic or (j.different and n not in known)]


def _unseen(plant: Planted, result: StateResult, before: frozenset[str]) -> str:
    """Say why nothing new was found."""
    expected = [result.judged[n] for n in plant.expect if n in result.judged]
    if plant.kind == "precision" and any(n in before for n in plant.expect):
        return "masked"
    return "not judged" if any(j.cls.value == "not judged" for j in expected) else "missed"


def _told(plant: Planted, engine: SharedEngine, result: StateResult, new: list[str]) -> Row:
    first = new[0]
    record = engine.case_record(ParityCase(engine.pair.name, first, "", plant.lora))
    judged = [result.judged[n] for n in new]
    nearest = record["nearest"]
    proved = record["repair"] is not None or bool(nearest and nearest["ratio"] <= 0.75 and not record["logic"])
    return {
        "first": first, "placed": _is_placed(plant, result, first), "fails": any(j.fails for j in judged),
        "by": "logic" if result.judged[first].logic else "precision", "verdict": record["verdict"],
        "proved": proved, "named": _is_named(plant, engine, record, proved), "likely": list(record["likely"]),
        "signatures": [s[0] for s in record["signatures"]][:3],
    }  # fmt: skip


def _is_placed(plant: Planted, result: StateResult, first: str) -> bool:
    """Say whether a bug is found where it first changes a bit in lockstep."""
    silent = all(draw[n].bit_exact for draw in result.draws for n in plant.expect if n in draw)
    return first in plant.expect or (silent and first in plant.later)


def _is_named(plant: Planted, engine: SharedEngine, record: Mapping[str, Any], proved: bool) -> bool:
    """Say whether the first cause names the plant: its own signature or words, or an edit that is proved to undo it.

    A place alone ("differs from ... on") says where to look and not what to change: it names nothing.
    """
    causes = record["likely"]
    if not causes or causes[0].startswith("differs from"):
        return False
    if plant.category == "signature":
        names = [s[0] for s in record["signatures"]]
        return record["repair"] is not None or names[:1] == [plant.named]
    return proved or bool(re.search(plant.named, causes[0]))
