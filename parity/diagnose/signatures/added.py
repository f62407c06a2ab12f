"""Another tap's value is added or missing: a residual that is omitted or added twice."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import EXACT, Seen, close, signature


def detect(seen: Seen) -> str | None:
    """Find the earlier tap whose multiple is the difference."""
    difference = seen.native - seen.reference
    for name, value in seen.upstream.items():
        base = float(value.square().sum())
        factor = float((difference * value).sum()) / base if base else 0.0
        if abs(factor) > EXACT and close(difference, factor * value):
            how = {1.0: "once too often", -1.0: "not"}.get(round(factor, 9), f"{factor:.4g} times too often")
            return f"the value of {name} is added {how}"
    return None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Add what came in once more."""
    return value + upstream


SIGNATURE = signature("added", "value", 6, detect, plant)
