"""A factor for each token: a norm that is missing or done twice, a weight per token."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import Seen, close, signature


def detect(seen: Seen) -> str | None:
    """Find the factor of each token."""
    n, r = seen.rows
    factors = (n * r).sum(1) / r.square().sum(1).clamp_min(1e-300)
    if r.shape[1] < 3 or len(r) < 2 or not close(n, factors[:, None] * r):
        return None
    low, high = float(factors.min()), float(factors.max())
    return f"a factor per token ({low:.3g} to {high:.3g}): a norm missing or done twice"


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Normalise every token once more."""
    return value / value.square().mean(-1, keepdim=True).sqrt()


SIGNATURE = signature("token_factor", "value", 12, detect, plant)
