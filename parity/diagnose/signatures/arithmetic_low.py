"""A modulation, a gate or a residual is computed in 16 bits where the original keeps float32."""

from __future__ import annotations

from parity.diagnose.nearest import Nearest
from parity.diagnose.plants import low_ops
from parity.diagnose.signature import rounded, signature


def _about(nearest: Nearest) -> bool:
    """Say whether what is rounded only multiplies and adds."""
    return bool(nearest.ops) and nearest.ops <= {"mul", "add", "sub", "addcmul", "div", "add_", "mul_"}


detect = rounded("round", _about)

plant = low_ops("mul", "add", "addcmul", scalars=False)

SIGNATURE = signature("arithmetic_low", "modulation", 16, detect, plant, on="rounding")
