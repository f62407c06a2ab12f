"""A square weight is transposed."""

from __future__ import annotations

from torch import nn

from parity.diagnose.plants import WeightPlant, linears
from parity.diagnose.signature import Seen, Words, repaired, signature


def detect(seen: Seen) -> Words:
    """Find a weight that is the transpose of what it should be, or take the repair."""
    for w in seen.found.weights:
        square = w.held.dim() == 2 and w.held.shape[0] == w.held.shape[1]
        if square and w.held.equal(w.expected.T.to(w.held.dtype)):
            return f"{w.name} is transposed"
    return repaired("weights_transposed")(seen)


def edit(module: nn.Module) -> int:
    """Transpose the first square weight."""
    for _, linear in linears(module):
        weight = linear.get_parameter("weight")
        if weight.shape[0] == weight.shape[1]:
            weight.copy_(weight.T.clone())
            return 1
    return 0


SIGNATURE = signature("weights_transposed", "weights", -8, detect, WeightPlant(edit))
