"""The rows or columns of a weight are in another order: chunks of a fused projection, halves for pairs."""

from __future__ import annotations

import torch
from torch import nn

from parity.diagnose.matching import matched
from parity.diagnose.plants import WeightPlant, linears
from parity.diagnose.signature import Seen, Words, repaired, signature


def detect(seen: Seen) -> Words:
    """Find a weight that has the rows or columns it should, elsewhere; or take the repair."""
    for w in seen.found.weights:
        for dim in range(min(w.held.dim(), 2)):
            held, expected = (side.movedim(dim, 0).flatten(1).double() if side.dim() > 1 else side[:, None].double()
                              for side in (w.held, w.expected.to(w.held.dtype)))  # fmt: skip
            if (order := matched(held, expected)) is not None:
                rows = ("rows", "columns")[dim] if w.held.dim() > 1 else "values"
                return f"{w.name} has its {rows} in another order, the first ones {order[:4]}"
    return repaired("weights_order")(seen)


def edit(module: nn.Module) -> int:
    """Put the second half of a weight's rows first."""
    for _, linear in linears(module)[:1]:
        weight = linear.get_parameter("weight")
        weight.copy_(torch.cat(weight.chunk(2)[::-1]))
        return 1
    return 0


SIGNATURE = signature("weights_order", "weights", -6, detect, WeightPlant(edit))
