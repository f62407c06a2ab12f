"""Chunks of channels are in another order: q and k, shift and scale, gate and value."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.diagnose.signature import Seen, close, signature


def detect(seen: Seen) -> str | None:
    """Find the order the chunks are in."""
    width = seen.reference.shape[-1]
    for count in (k for k in (2, 3, 4, 6) if width % k == 0 and width > k):
        ours, theirs = seen.native.chunk(count, -1), seen.reference.chunk(count, -1)
        order = [next((j for j, t in enumerate(theirs) if close(o, t)), -1) for o in ours]
        if sorted(order) == list(range(count)):
            return f"the {count} chunks of channels are in the order {order}"
    return None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Exchange the halves."""
    return torch.cat(value.chunk(2, -1)[::-1], -1)


SIGNATURE = signature("chunks", "value", 3, detect, plant)
