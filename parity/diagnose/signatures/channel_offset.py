"""A vector is added to every token: a bias that is missing, doubled or another."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.diagnose.signature import Seen, close, signature


def detect(seen: Seen) -> str | None:
    """Find the vector that is added to every token."""
    n, r = seen.rows
    offset = (n - r).mean(0)
    if len(n) < 3 or close(r, r[:1].expand_as(r)) or not close(n - r, offset.expand_as(r)):
        return None
    return f"a constant offset per channel (norm {float(offset.norm()):.3g}): a bias missing, doubled or another"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Add a bias to every token."""
    return value + torch.linspace(-1.0, 1.3, value.shape[-1], dtype=value.dtype, device=value.device)


SIGNATURE = signature("channel_offset", "value", 10, detect, plant)
