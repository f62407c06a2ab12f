"""Planted bugs are found where they first show, nothing benign is, and where the method is blind it says so."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import replace
from functools import partial
from typing import Any

import pytest
import torch

from fixtures.pairs.longcat import PAIR, inputs_of
from fixtures.plants import PLANTS, Plant
from fixtures.plants_named import NAMED, two_blocks
from parity.loaded import LoadedSide
from parity.numerics.verdict import VerdictClass
from parity.pair import Build
from parity.run import Options, StateResult, run_state
from parity.session import PairSession

TOKENS = 128
Run = Callable[[str, torch.dtype], StateResult]


@pytest.fixture(scope="module")
def run() -> Run:
    """Return a function that runs one plant; references and their passes are shared."""
    references: dict[Any, LoadedSide] = {}
    traces: dict[Any, dict[Any, Any]] = {}
    whole = replace(PAIR, inputs=partial(inputs_of, tokens=TOKENS))

    def run_plant(name: str, dtype: torch.dtype) -> StateResult:
        base = two_blocks(PAIR) if PLANTS[name].kind == "logic" else whole
        which = (base.sizes[0], dtype)
        session = PairSession(PLANTS[name].apply(base), Build(size=which[0], dtype=dtype), references.get(which))
        references[which], session.traces = session.reference, traces.setdefault(which, {})
        # What explains a logic error takes as long as the verdict and does not change it: it is asked for in one dtype.
        options = Options(singles=0, explain=is_explained(PLANTS[name], dtype))
        return run_state(session, name.startswith("lora_"), options)

    return run_plant


def expressible(kind: str) -> list[Any]:
    cases = [(p, d) for p in PLANTS.values() if p.kind == kind for d in p.dtypes]
    return [pytest.param(p, d, id=f"{p.name}-{str(d).removeprefix('torch.')}") for p, d in cases]


def is_explained(plant: Plant, dtype: torch.dtype) -> bool:
    return plant.kind != "logic" or dtype == plant.dtypes[-1]


def named(result: StateResult) -> str:
    """The signature that is named first where a bug first shows."""
    found = result.explained.signatures.get(result.first_different or "", [])
    return found[0][0] if found else ""


@pytest.mark.parametrize(("plant", "dtype"), expressible("logic"))
def test_logic_bugs_fail_where_they_first_show(run: Run, plant: Plant, dtype: torch.dtype) -> None:
    result = run(plant.name, dtype)
    assert result.first_different is not None
    assert result.facts[result.first_different].kind == plant.expect
    assert result.judged[result.first_different].logic
    assert result.judged[result.first_different].fails
    if is_explained(plant, dtype):
        assert named(result) in NAMED[plant.name]


@pytest.mark.parametrize(("plant", "dtype"), expressible("precision"))
def test_other_roundings_are_found_where_they_first_show(run: Run, plant: Plant, dtype: torch.dtype) -> None:
    result = run(plant.name, dtype)
    assert result.first_different is not None
    assert result.facts[result.first_different].kind == plant.expect
    assert not result.judged[result.first_different].logic
    assert result.explained.nearest[result.first_different].explains
    assert named(result) in NAMED[plant.name]


@pytest.mark.parametrize(("plant", "dtype"), expressible("benign"))
def test_nothing_benign_differs(run: Run, plant: Plant, dtype: torch.dtype) -> None:
    result = run(plant.name, dtype)
    assert {n: j.reasons for n, j in result.judged.items() if j.different} == {}


def test_a_healthy_pair_passes_everywhere(run: Run) -> None:
    result = run("threads", torch.bfloat16)
    assert {j.cls for j in result.judged.values()} <= {VerdictClass.BIT_EXACT, VerdictClass.SAME}
    assert result.observer == []
    assert result.events == {}
