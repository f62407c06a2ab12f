"""A bias that the native holds is not added."""

from __future__ import annotations

from typing import Any

import torch

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("bias_missing")


def wrong(call: OpCall) -> Any:
    """Multiply without adding."""
    return torch.mm(call.args[1], call.args[2]) if call.name == "addmm" else UNTOUCHED


SIGNATURE = signature("bias_missing", "weights", 7, detect, OpPlant(wrong))
