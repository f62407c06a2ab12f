"""A norm adds another eps: 1e-5 for 1e-6, or its default. The eps that restores the function is found."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

_PLACES = {"native_layer_norm": 4, "_fused_rms_norm": 3, "native_group_norm": 7}

detect = repaired("norm_eps")


def wrong(call: OpCall) -> Any:
    """Add ten times the eps."""
    if call.name in _PLACES:
        return call.with_argument(_PLACES[call.name], 10 * call.args[_PLACES[call.name]])
    small = call.name == "add" and isinstance(call.args[1], float) and 0 < call.args[1] < 1e-3
    return call.with_argument(1, 10 * call.args[1]) if small else UNTOUCHED


SIGNATURE = signature("norm_eps", "norm", 7, detect, OpPlant(wrong))
