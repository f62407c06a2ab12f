"""The parts of a fused tensor are taken in another order: q, k and v, or k and v."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("parts_order")


def wrong(call: OpCall) -> Any:
    """Exchange the first two parts of what is taken apart."""
    if call.name not in ("split", "split_with_sizes", "unbind"):
        return UNTOUCHED
    parts = list(call.run())
    fused = len(parts) > (2 if call.name == "unbind" else 1) and parts[0].shape == parts[1].shape
    return [parts[1], parts[0], *parts[2:]] if fused else UNTOUCHED


SIGNATURE = signature("parts_order", "layout", 7, detect, OpPlant(wrong))
