"""A modulation multiplies by the scale for one plus the scale, or the other way round."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("scale_one")


def wrong(call: OpCall) -> Any:
    """Leave the one out."""
    one = call.name == "add" and not isinstance(call.args[1], bool) and call.args[1] is not None
    plain = one and isinstance(call.args[1], (int, float)) and call.args[1] == 1
    return call.args[0].clone() if plain else UNTOUCHED


SIGNATURE = signature("scale_one", "modulation", 7, detect, OpPlant(wrong))
