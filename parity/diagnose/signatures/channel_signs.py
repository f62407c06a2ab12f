"""Some channels have the other sign: a rotation that turns the other way."""

from __future__ import annotations

import torch
from torch import Tensor

from parity.diagnose.signature import Seen, close, signature


def detect(seen: Seen) -> str | None:
    """Find the channels with the other sign."""
    n, r = seen.rows
    signs = torch.where((n * r).sum(0) < 0, -1.0, 1.0).to(r)
    if not close(n, signs * r) or bool((signs < 0).all()):
        return None
    turned = (signs < 0).nonzero().flatten().tolist()
    return f"{len(turned)} of {len(signs)} channels have the other sign, first {turned[0]}" if turned else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Turn the sign of every second channel."""
    signs = torch.ones(value.shape[-1], dtype=value.dtype, device=value.device)
    signs[::2] = -1
    return value * signs


SIGNATURE = signature("channel_signs", "value", 5, detect, plant)
