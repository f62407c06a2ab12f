"""A number is added to each token's channels: a mean that is not taken off."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, close, signature


def detect(seen: Seen) -> str | None:
    """Find the number added to all channels of a token."""
    n, r = seen.rows
    offset = (n - r).mean(1, keepdim=True)
    if r.shape[1] < 3 or len(r) < 2 or not close(n - r, offset.expand_as(r)):
        return None
    return "all channels of a token are moved by one number: a mean that is taken off on one side only"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Take the mean off every token."""
    return value - value.mean(-1, keepdim=True)


SIGNATURE = signature("token_offset", "value", 12, detect, plant)
