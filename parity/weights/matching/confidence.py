"""How sure a finding is, and why."""

from __future__ import annotations

import math
from collections.abc import Mapping

from parity.weights.matching.entries import HIGH, MEDIUM
from parity.weights.matching.sketch import Sketch

VALUES, CONSTANT, NAMED, PLACE, BESIDE, IN_BLOCK = "values", "constant", "named", "place", "beside", "in block"
"""How a tensor was found: by value, as a constant by its place alone, as one with its siblings, drowned values."""
_WORDS = {
    CONSTANT: ("low", "the same constant; which of several it is follows from its place alone"),
    NAMED: ("medium", "the same constant, and its siblings were found by value in the same module or block"),
    PLACE: ("low", "by its place alone: too few values, too far apart, to tell"),
    BESIDE: ("medium", "its values are too far apart to tell, and its siblings were found by value in the same module "
                       "or block"),
    IN_BLOCK: ("medium", "noise drowns its values, and no other tensor of its block resembles it beyond chance"),
}  # fmt: skip


def confidence_of(how: str, metrics: Mapping[str, float], native: Sketch) -> dict[str, str]:
    """Return confidence and why of one entry."""
    if math.isnan(metrics["rel_l2"]) and native.constant is None:
        return {"confidence": "low", "why": "holds NaN or inf: not measured"}
    if how in _WORDS:
        level, why = _WORDS[how]
        return {"confidence": level, "why": why}
    likeness = metrics["pearson"] if native.rows == 1 and not math.isnan(metrics["pearson"]) else metrics["cosine"]
    level = "high" if likeness > HIGH else "medium" if likeness >= MEDIUM else "low"
    return {"confidence": level, "why": "by value"}
