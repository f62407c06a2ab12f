"""A step that the reference does not have: rows that are padded, cut off, moved, clamped or rounded on the way."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("step_extra")


def wrong(call: OpCall) -> Any:
    """Clamp what a first layer gives."""
    if call.name not in ("addmm", "mm", "bmm") or call.nth:
        return UNTOUCHED
    return call.run().clamp(-0.5, 0.5)


SIGNATURE = signature("step_extra", "value", 25, detect, OpPlant(wrong))
