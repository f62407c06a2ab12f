"""The rotation of q and k is computed in 16 bits where the original turns them in float32."""

from __future__ import annotations

from typing import Any

from parity.diagnose.nearest import Nearest
from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant, in_low, is_wide, waves_of
from parity.diagnose.signature import rounded, signature


def _about(nearest: Nearest) -> bool:
    """Say whether what is rounded takes sines and cosines towards an attention kernel."""
    return nearest.turns and not nearest.ops & {"addmm", "mm", "rsqrt", "mean"}


detect = rounded("round", _about)


def wrong(call: OpCall) -> Any:
    """Multiply by a sine or cosine in bfloat16."""
    waves, noted = waves_of(call)
    if noted is not None:
        return noted
    of_waves = [w for w in waves if any(a is w or getattr(a, "_base", None) is w for a in call.args)]
    return in_low(call) if call.name == "mul" and is_wide(call) and of_waves else UNTOUCHED


SIGNATURE = signature("rope_low", "rope", 14, detect, OpPlant(wrong), on="rounding")
