"""The value is moved along an axis: off by one token, frame or channel."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the axis and how far the value is moved along it."""
    for dim, size in enumerate(seen.reference.shape):
        for step in (s for k in range(1, min(size // 2, 4) + 1) for s in (k, -k)):
            if seen.holds(seen.reference.roll(step, dim)):
                return f"moved by {step} along axis {dim} of {seen.reference.dim()} (size {size})"
    return None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Move the tokens by one."""
    return value.roll(1, -2)


SIGNATURE = signature("rolled", "value", 3, detect, plant)
