"""One operand has the other sign: a sum for a difference."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("operand_sign")


def wrong(call: OpCall) -> Any:
    """Subtract for the first sum of two values."""
    both = call.name == "add" and all(isinstance(a, Tensor) for a in call.args[:2]) and "done" not in call.kept
    if not both:
        return UNTOUCHED
    call.kept["done"] = True
    return call.run(call.args[0], -call.args[1])


SIGNATURE = signature("operand_sign", "value", 9, detect, OpPlant(wrong))
