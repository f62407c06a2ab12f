"""Only some channels differ: one head, one axis of a rotation, a chunk."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.matching import stretch
from parity.diagnose.signature import EXACT, Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the channels that differ."""
    n, r = seen.rows
    apart = (n - r).norm(dim=0) > EXACT * r.norm(dim=0).clamp_min(float(r.norm()) * EXACT)
    places, width = apart.nonzero().flatten().tolist(), r.shape[1]
    if width < 4 or not 0 < len(places) <= width // 2:
        return None
    return f"only {len(places)} of {width} channels differ: {stretch(places)}"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Spoil the first quarter of the channels."""
    spoilt, width = value.clone(), value.shape[-1] // 4
    spoilt[..., :width] = spoilt[..., :width].sin()
    return spoilt


SIGNATURE = signature("some_channels", "value", 31, detect, plant)
