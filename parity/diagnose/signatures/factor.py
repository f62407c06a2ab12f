"""A constant factor: alpha / rank, the scale of a timestep, one over a square root."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import EXACT, Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the factor of the whole value."""
    base = float(seen.reference.square().sum())
    factor = float((seen.native * seen.reference).sum()) / base if base else 1.0
    plain = abs(factor) > EXACT and factor != -1.0
    return f"a constant factor of {factor:.6g}" if plain and seen.holds(factor * seen.reference) else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Scale by two, as an ignored alpha / rank does."""
    return value * 2


SIGNATURE = signature("factor", "value", 1, detect, plant)
