"""The rows or columns of a weight are in another order of heads."""

from __future__ import annotations

from torch import nn

from parity.diagnose.plants import WeightPlant, linears, norms
from parity.diagnose.signature import HeldWeight, Seen, Words, repaired, signature


def detect(seen: Seen) -> Words:
    """Find a weight whose heads are rolled or interleaved, or take the repair that puts them back."""
    found = (words for weight in seen.found.weights if (words := _order(weight, seen.found.heads)))
    return next(found, None) or repaired("head_order")(seen)


def _order(weight: HeldWeight, heads: int) -> Words:
    held, expected = weight.held, weight.expected.to(weight.held.dtype)
    for dim in range(min(held.dim(), 2)):
        size = held.shape[dim]
        if heads < 2 or size % heads:
            continue
        for step in range(1, heads):
            if held.equal(expected.roll(step * (size // heads), dim)):
                return f"{weight.name} is rolled by {step} heads along dim {dim}"
        if held.equal(expected.unflatten(dim, (heads, -1)).transpose(dim, dim + 1).flatten(dim, dim + 1)):
            return f"{weight.name} has its heads interleaved along dim {dim}"
    return None


def edit(module: nn.Module) -> int:
    """Roll the rows of the third projection of attention by one head."""
    narrow = norms(module)
    head = next(narrow[0].parameters()).numel() if narrow else 0
    weights = [m.get_parameter("weight") for _, m in linears(module)]
    found = [w for w in weights if head and w.shape[0] == w.shape[1] > head][2:3]
    for weight in found:
        weight.copy_(weight.roll(head, 0))
    return len(found)


SIGNATURE = signature("head_order", "attention", -7, detect, WeightPlant(edit))
