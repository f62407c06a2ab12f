"""The value is cut off at a bound: a clamp on one side only."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the bounds outside which the reference is cut off."""
    low, high = float(seen.native.min()), float(seen.native.max())
    cut = seen.reference.clamp(low, high)
    return f"cut off to [{low:.4g}, {high:.4g}]" if low < high and seen.holds(cut) else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Cut off at a bound."""
    return value.clamp(-0.7, 0.9)


SIGNATURE = signature("clamped", "value", 3, detect, plant)
