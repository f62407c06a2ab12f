"""One number in the code is another: a factor or an offset that is not the original's."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("number")


def wrong(call: OpCall) -> Any:
    """Double the first number that multiplies."""
    plain = call.name == "mul" and isinstance(call.args[1], (int, float)) and "done" not in call.kept
    if not plain:
        return UNTOUCHED
    call.kept["done"] = True
    return call.with_argument(1, 2 * call.args[1])


SIGNATURE = signature("number", "value", 40, detect, OpPlant(wrong))
