"""A bias is added in a second op: a product is rounded once before and once behind it."""

from __future__ import annotations

from typing import Any

import torch

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import rounded, signature

detect = rounded("split", lambda nearest: True)


def wrong(call: OpCall) -> Any:
    """Multiply, round, add the bias, round."""
    if call.name != "addmm" or call.args[0].dtype == torch.float32:
        return UNTOUCHED
    return torch.mm(call.args[1], call.args[2]) + call.args[0]


SIGNATURE = signature("bias_apart", "precision", 10, detect, OpPlant(wrong), on="rounding")
