"""A weight that the original keeps in float32 was rounded to 16 bits by the converter."""

from __future__ import annotations

import torch
from torch import nn

from parity.diagnose.plants import WeightPlant, linears
from parity.diagnose.signature import Seen, Words, signature


def detect(seen: Seen) -> Words:
    """Find a weight that is what it should be, rounded."""
    for w in seen.found.weights:
        for dtype in (torch.bfloat16, torch.float16):
            if w.held.equal(w.expected.to(dtype).to(w.held.dtype)):
                return f"{w.name} is rounded to {str(dtype).removeprefix('torch.')}"
    return None


def edit(module: nn.Module) -> int:
    """Round a float32 weight to bfloat16."""
    wide = [m.get_parameter("weight") for _, m in linears(module) if m.get_parameter("weight").dtype == torch.float32]
    for weight in wide[:1]:
        weight.copy_(weight.to(torch.bfloat16))
    return len(wide[:1])


SIGNATURE = signature("weights_rounded", "weights", -6, detect, WeightPlant(edit), on="both")
