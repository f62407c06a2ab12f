"""A weight lost its scale: a constant factor of the whole tensor or of each row."""

from __future__ import annotations

from torch import nn

from parity.diagnose.plants import WeightPlant, linears
from parity.diagnose.signature import Seen, Words, repaired, signature


def detect(seen: Seen) -> Words:
    """Find the factor of a weight or of its rows, or take the repair."""
    for w in seen.found.weights:
        held, expected = (side.double().reshape(len(side), -1) for side in (w.held, w.expected))
        factors = (held * expected).sum(1) / expected.square().sum(1).clamp_min(1e-300)
        step = 2.0**-7 if w.held.element_size() < 4 else 1e-5
        plain = held.shape[1] > 3 and float(factors.abs().min()) > 0
        if plain and float((held - factors[:, None] * expected).norm()) < step * float(held.norm()):
            low, high = float(factors.min()), float(factors.max())
            one = high - low < 2 * step * abs(high)
            if one and abs(high - 1) < 4 * step:
                continue
            rows = "" if one else f", some rows {low:.4g} times"
            return f"{w.name} is {high:.4g} times what it should be{rows}"
    return repaired("weights_scaled")(seen)


def edit(module: nn.Module) -> int:
    """Drop a scale."""
    for _, linear in linears(module)[:1]:
        linear.get_parameter("weight").mul_(8.0)
        return 1
    return 0


SIGNATURE = signature("weights_scaled", "quant", -6, detect, WeightPlant(edit))
