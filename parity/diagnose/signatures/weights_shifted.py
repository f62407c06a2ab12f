"""A gain is stored as its distance from one, or its mean is taken off: the whole tensor is moved by a number."""

from __future__ import annotations

from torch import nn

from parity.diagnose.plants import WeightPlant, norms
from parity.diagnose.signature import Seen, Words, repaired, signature


def detect(seen: Seen) -> Words:
    """Find a weight that is moved by one number, or take the repair."""
    for w in seen.found.weights:
        moved = w.held.double() - w.expected.double()
        by = float(moved.mean())
        step = 2.0**-7 if w.held.element_size() < 4 else 1e-5
        if moved.numel() > 2 and abs(by) > 0.1 and float((moved - by).abs().max()) < step * max(1.0, abs(by)):
            return f"{w.name} is {by:+.4g} throughout: 1 + gain for gain, or the other way round"
    return repaired("weights_shifted")(seen)


def edit(module: nn.Module) -> int:
    """Store a gain less one."""
    for norm in norms(module)[:1]:
        norm.get_parameter("weight").sub_(1.0)
    return len(norms(module)[:1])


SIGNATURE = signature("weights_shifted", "weights", -6, detect, WeightPlant(edit))
