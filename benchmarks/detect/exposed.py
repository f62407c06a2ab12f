"""Bugs that no default input shows: found on drawn inputs, as the suite draws them."""

from __future__ import annotations

import time
from typing import Any

import torch

from benchmarks.detect.pairs import whole
from fixtures.plants_drawn import EXPOSED
from parity.explored import explored
from parity.pair import Build
from parity.session import PairSession
from parity.stage import Options
from parity.strategies import Profile


def measure_exposed(name: str) -> dict[str, Any]:
    """Judge a planted pair on its default input and on up to thirty drawn ones."""
    started, plant, pair = time.process_time(), EXPOSED[name], whole("longcat")
    healthy, wrong = PairSession(pair, Build()), PairSession(plant.apply(pair), Build())
    outputs = [_output(s, plant.lora) for s in (healthy, wrong)]
    found = explored(wrong, plant.lora, Options(twins=0), Profile(examples=30, name="ci", shrinks=0))
    failing = found.failing
    return {
        "source": "exposed", "key": f"exposed|{name}", "name": name, "like": list(plant.like),
        "default": "no effect" if torch.equal(*outputs) else "shows",
        "status": "missed" if failing is None else "detected",
        "input": None if failing is None else repr(failing.drawn), "examples": len(found.examples),
        "first": "" if failing is None else failing.tap, "needed": failing is not None and plant.needs(failing.drawn),
        "seconds": round(time.process_time() - started, 3),
    }  # fmt: skip


def _output(session: PairSession, lora: bool) -> torch.Tensor:
    with session.lora(lora):
        return session.native.runner(()).run(session.inputs(0)).values["final_output"].low
