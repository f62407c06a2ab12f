"""The value is in the other order along an axis: conditioned and unconditioned sample, frames, channels."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the axis that is in the other order."""
    for dim in range(seen.reference.dim()):
        if seen.reference.shape[dim] > 1 and seen.holds(seen.reference.flip(dim)):
            return f"in the other order along axis {dim} of {seen.reference.dim()}"
    return None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Reverse the tokens."""
    return value.flip(-2)


SIGNATURE = signature("reversed_axis", "value", 2, detect, plant)
