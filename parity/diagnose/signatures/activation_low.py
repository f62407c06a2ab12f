"""An activation that the original computes in float32 is computed in 16 bits."""

from __future__ import annotations

from parity.diagnose.nearest import Nearest
from parity.diagnose.plants import low_ops
from parity.diagnose.signature import rounded, signature

_OPS = ("silu", "gelu", "sigmoid", "tanh", "relu")


def _about(nearest: Nearest) -> bool:
    """Say whether what is rounded is an activation."""
    return bool(nearest.ops & set(_OPS))


detect = rounded("round", _about)

SIGNATURE = signature("activation_low", "precision", 15, detect, low_ops(*_OPS), on="rounding")
