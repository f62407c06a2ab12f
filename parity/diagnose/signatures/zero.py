"""The value is zero: a branch that is not computed, or a gate that is shut."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Say that the native is zero throughout."""
    return "the native is 0 throughout" if not bool(seen.native.any()) else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Shut the gate."""
    return value * 0


SIGNATURE = signature("zero", "value", 0, detect, plant)
