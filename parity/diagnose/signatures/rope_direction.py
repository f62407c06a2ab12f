"""The rotation turns the other way, or one of its two products has the other sign."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("rope_direction")


def wrong(call: OpCall) -> Any:
    """Turn the sign of the sines."""
    return -call.run() if call.name == "sin" else UNTOUCHED


SIGNATURE = signature("rope_direction", "rope", 7, detect, OpPlant(wrong))
