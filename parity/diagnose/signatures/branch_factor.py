"""What is added to the residual stream is scaled by a number."""

from __future__ import annotations

from typing import Any

from torch import Tensor

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("branch_factor")


def wrong(call: OpCall) -> Any:
    """Add half of what is added to a value of its shape."""
    both = call.name == "add" and all(isinstance(a, Tensor) for a in call.args[:2])
    if not both or call.args[0].dim() != 3 or call.args[0].shape != call.args[1].shape:
        return UNTOUCHED
    return call.run(call.args[0], call.args[1] * 0.5)


SIGNATURE = signature("branch_factor", "value", 22, detect, OpPlant(wrong))
