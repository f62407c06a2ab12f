"""GELU in its exact form for the tanh form, or the other way round."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("gelu_form")


def wrong(call: OpCall) -> Any:
    """Compute the other form."""
    other = {"tanh": "none", "none": "tanh"}
    return call.run(approximate=other[call.kwargs.get("approximate", "none")]) if call.name == "gelu" else UNTOUCHED


SIGNATURE = signature("gelu_form", "activation", 7, detect, OpPlant(wrong))
