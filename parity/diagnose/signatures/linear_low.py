"""A linear layer that the original runs in float32 runs in 16 bits: AdaLN, time embedding, last projection."""

from __future__ import annotations

from parity.diagnose.nearest import Nearest
from parity.diagnose.plants import low_ops
from parity.diagnose.signature import rounded, signature

_OPS = ("addmm", "mm", "linear", "convolution")


def _about(nearest: Nearest) -> bool:
    """Say whether what is rounded is a product with a weight, outside an attention kernel."""
    return bool(nearest.ops & set(_OPS)) and not nearest.kernel


detect = rounded("round", _about)

SIGNATURE = signature("linear_low", "precision", 13, detect, low_ops(*_OPS), on="rounding")
