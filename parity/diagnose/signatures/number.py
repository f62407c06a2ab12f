"""One number in the code is another: a factor or an offset that is not the original's."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("number")


def wrong(call: OpCall) -> Any:
    """Double what an activation gives."""
    return call.run() * 2 if call.name in ("silu", "gelu") else UNTOUCHED


SIGNATURE = signature("number", "value", 40, detect, OpPlant(wrong))
