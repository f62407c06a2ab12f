"""A factor for each channel: a gain that is missing, squared or off by one."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.diagnose.signature import Seen, close, signature


def detect(seen: Seen) -> str | None:
    """Find the factor of each channel."""
    n, r = seen.rows
    factors = (n * r).sum(0) / r.square().sum(0).clamp_min(1e-300)
    if len(n) < 3 or close(r, r[:1].expand_as(r)) or not close(n, factors * r):
        return None
    low, high = float(factors.min()), float(factors.max())
    return f"a constant factor per channel ({low:.3g} to {high:.3g}): a gain missing or another"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Drop a gain."""
    return value * torch.linspace(0.4, 1.7, value.shape[-1], dtype=value.dtype, device=value.device)


SIGNATURE = signature("channel_factor", "value", 11, detect, plant)
