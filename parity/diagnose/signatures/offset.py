"""One number is added to the whole value."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the number that is added everywhere."""
    offset = float((seen.native - seen.reference).mean())
    return f"{offset:.6g} is added everywhere" if seen.holds(seen.reference + offset) else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Add a number."""
    return value + 0.5


SIGNATURE = signature("offset", "value", 1, detect, plant)
