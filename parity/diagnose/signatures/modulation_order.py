"""Shift, scale and gate are taken from a modulation in another order."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("modulation_order")


def wrong(call: OpCall) -> Any:
    """Exchange the first two parts of what is taken apart."""
    if call.name in ("split", "split_with_sizes", "unbind"):
        parts = list(call.run())
        if len(parts) < 2 or parts[0].shape != parts[1].shape:
            return UNTOUCHED
        return [parts[1], parts[0], *parts[2:]]
    if call.name != "slice" or len(call.args) < 4 or call.args[1] not in (-1, call.args[0].dim() - 1):
        return UNTOUCHED
    whole, start, end = call.args[0].shape[-1], call.args[2], call.args[3]
    width = (end or whole) - (start or 0)
    if whole % max(width, 1) or whole // max(width, 1) < 2 or start not in (0, width) or len(call.args) > 4:
        return UNTOUCHED
    begin = width if start == 0 else 0
    return call.run(*call.args[:2], begin, begin + width)


SIGNATURE = signature("modulation_order", "modulation", 7, detect, OpPlant(wrong))
