"""Two layers of one shape have each other's LoRA."""

from __future__ import annotations

import itertools
from dataclasses import replace

from parity.diagnose.plants import AdapterPlant
from parity.diagnose.signature import repaired, signature
from parity.lora.adapter import LoraAdapter

detect = repaired("lora_exchanged")


def edit(adapter: LoraAdapter, within: list[str]) -> LoraAdapter:
    """Exchange the LoRA of the first two layers of one shape."""
    targets = dict(adapter.targets)
    for one, other in itertools.combinations(within, 2):
        a, b = targets[one], targets[other]
        if (a.A.shape, a.B.shape) == (b.A.shape, b.B.shape) and not (a.A.equal(b.A) and a.B.equal(b.B)):
            return replace(adapter, targets={**targets, one: b, other: a})
    return adapter


SIGNATURE = signature("lora_exchanged", "lora", 6, detect, AdapterPlant(edit))
