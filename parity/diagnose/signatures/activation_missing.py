"""An activation of the original is not there."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("activation_missing")


def wrong(call: OpCall) -> Any:
    """Hand on what came in."""
    return call.args[0].clone() if call.name in ("silu", "gelu") else UNTOUCHED


SIGNATURE = signature("activation_missing", "activation", 7, detect, OpPlant(wrong))
