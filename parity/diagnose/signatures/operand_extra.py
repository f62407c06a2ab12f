"""A sum or a product has an operand that the original does not have."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("operand_extra")


def wrong(call: OpCall) -> Any:
    """Weight what is added to the residual stream."""
    both = call.name == "add" and all(isinstance(a, Tensor) for a in call.args[:2])
    if not both or call.args[0].dim() != 3 or call.args[0].shape != call.args[1].shape:
        return UNTOUCHED
    weight = torch.linspace(0.5, 1.5, call.args[1].shape[-1], dtype=call.args[1].dtype, device=call.args[1].device)
    return call.run(call.args[0], call.args[1] * weight)


SIGNATURE = signature("operand_extra", "value", 41, detect, OpPlant(wrong))
