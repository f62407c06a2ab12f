"""The numbers are the reference's, each in another place: a patch packed channels first, axes exchanged."""

from __future__ import annotations

import itertools

import torch
from torch import Tensor

from parity.diagnose.signature import Seen, Words, close, signature


def detect(seen: Seen) -> Words:
    """Compare the sorted numbers, then look for the axes that are exchanged."""
    n, r = (side.flatten().sort().values for side in (seen.native, seen.reference))
    if n.numel() < 16 or n.shape != r.shape or not close(n, r) or len(torch.unique(r)) < r.numel() // 2:
        return None
    for i, k in itertools.combinations(range(seen.reference.dim()), 2):
        if seen.holds(seen.reference.transpose(i, k).reshape(seen.reference.shape)):
            return f"the values are the reference's, read along axis {k} before axis {i}"
    return "the values are the reference's, in another order"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Read the channels before the tokens."""
    return value.transpose(-1, -2).reshape(value.shape)


SIGNATURE = signature("rearranged", "layout", 21, detect, plant)
