"""The statistics of a norm are computed in 16 bits: the float32 norm of the original was lost."""

from __future__ import annotations

from parity.diagnose.nearest import Nearest
from parity.diagnose.plants import low_ops
from parity.diagnose.signature import rounded, signature

_WHOLE = ("native_layer_norm", "_fused_rms_norm", "native_group_norm")
_STEPS = ("rsqrt", "mean", "var", "var_mean", "std")


def _about(nearest: Nearest) -> bool:
    """Say whether what is rounded is of a norm."""
    return bool(nearest.ops & {*_WHOLE, *_STEPS})


detect = rounded("round", _about)

SIGNATURE = signature("norm_low", "precision", 12, detect, low_ops(*_WHOLE, *_STEPS), on="rounding")
