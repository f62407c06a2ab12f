"""The whole value has the other sign."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Say that the native is minus the reference."""
    return "the value has the other sign" if seen.holds(-seen.reference) else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Turn the sign."""
    return -value


SIGNATURE = signature("sign", "value", 0, detect, plant)
