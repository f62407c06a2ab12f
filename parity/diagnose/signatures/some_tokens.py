"""Only some tokens differ: padding, a mask, the first frame, one sample."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.matching import stretch
from parity.diagnose.signature import EXACT, Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the tokens that differ."""
    n, r = seen.rows
    apart = (n - r).norm(dim=1) > EXACT * r.norm(dim=1).clamp_min(float(r.norm()) / len(r) ** 0.5 * EXACT)
    places = apart.nonzero().flatten().tolist()
    if len(r) < 4 or not 0 < len(places) <= len(r) // 2:
        return None
    return f"only {len(places)} of {len(r)} tokens differ: {stretch(places)}"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Spoil the first two tokens."""
    spoilt = value.clone()
    spoilt[..., :2, :] = spoilt[..., :2, :].sin()
    return spoilt


SIGNATURE = signature("some_tokens", "value", 30, detect, plant)
