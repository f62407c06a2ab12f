"""The channels are grouped the other way round: heads first or last, halves for pairs, patch order."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def regrouped(value: Tensor, first: int) -> Tensor:
    """Order channels [first, others] as [others, first]."""
    grouped: Tensor = value.unflatten(-1, (first, -1)).transpose(-2, -1).flatten(-2)
    return grouped


def detect(seen: Seen) -> str | None:
    """Find how the channels are grouped instead."""
    width = seen.reference.shape[-1]
    for first in (k for k in range(2, width // 2 + 1) if width % k == 0):
        if seen.holds(regrouped(seen.reference, first)):
            return f"channels ordered ({width // first}, {first}) instead of ({first}, {width // first})"
    return None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Take pairs of channels apart into halves."""
    return regrouped(value, value.shape[-1] // 2)


SIGNATURE = signature("regrouped", "value", 4, detect, plant)
