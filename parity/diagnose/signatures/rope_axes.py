"""The parts of a head's channels follow other axes of the grid: rows for columns, time last."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("rope_axes")


def wrong(call: OpCall) -> Any:
    """Exchange the last two of three parts."""
    if call.name != "cat" or len(call.args[0]) != 3 or call.args[0][1].shape != call.args[0][2].shape:
        return UNTOUCHED
    first, second, third = call.args[0]
    return call.run([first, third, second], *call.args[1:])


SIGNATURE = signature("rope_axes", "rope", 7, detect, OpPlant(wrong))
