"""A factor and an offset: a scale to [0, 1] instead of [-1, 1], a latent that is normalised once more."""

from __future__ import annotations

from torch import Tensor

from parity.diagnose.signature import EXACT, Seen, signature


def detect(seen: Seen) -> str | None:
    """Find the factor and the number of the whole value."""
    n, r = seen.native.flatten(), seen.reference.flatten()
    centred = r - r.mean()
    spread = float(centred.square().sum())
    if not spread or n.numel() < 4:
        return None
    factor = float((n * centred).sum()) / spread
    offset = float(n.mean() - factor * r.mean())
    plain = abs(factor) > EXACT
    return f"times {factor:.6g} plus {offset:.6g}" if plain and seen.holds(factor * seen.reference + offset) else None


def plant(value: Tensor, upstream: Tensor) -> Tensor:
    """Map [-1, 1] to [0, 1]."""
    return value * 0.5 + 0.5


SIGNATURE = signature("affine", "value", 2, detect, plant)
