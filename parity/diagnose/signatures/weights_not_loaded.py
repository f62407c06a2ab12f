"""A weight was never loaded: constant, or random and without a trace of what it should be."""

from __future__ import annotations

import torch
from torch import nn

from parity.diagnose.plants import WeightPlant, linears
from parity.diagnose.signature import Seen, Words, signature


def detect(seen: Seen) -> Words:
    """Find a weight that is one number throughout, or that has nothing of what it should hold, in any order."""
    for w in seen.found.weights:
        held, expected = w.held.double().flatten(), w.expected.double().flatten()
        if held.numel() < 4 or w.holds:
            continue
        if bool((held == held[0]).all()) and not bool((expected == expected[0]).all()):
            return f"{w.name} is {float(held[0]):g} throughout: it was not loaded"
        h, e = held - held.mean(), expected - expected.mean()
        alike = float((h * e).sum() / (h.norm() * e.norm()).clamp_min(1e-300))
        same = abs(float(held.sort().values.sub(expected.sort().values).norm() / expected.norm())) < 1e-2
        if held.numel() >= 256 and abs(alike) < 5 / held.numel() ** 0.5 and not same:
            return f"{w.name} has nothing of what it should hold: it was not loaded"
    return None


def edit(module: nn.Module) -> int:
    """Leave a weight as it was initialised."""
    for _, linear in linears(module)[:1]:
        weight = linear.get_parameter("weight")
        values = torch.empty(weight.shape).uniform_(-1, 1, generator=torch.Generator().manual_seed(3))
        weight.copy_(values / weight.shape[1] ** 0.5)
        return 1
    return 0


SIGNATURE = signature("weights_not_loaded", "weights", -5, detect, WeightPlant(edit))
