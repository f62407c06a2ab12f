"""Another activation: SiLU for GELU, ReLU for what the configuration says."""

from __future__ import annotations

from typing import Any

import torch

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import repaired, signature

detect = repaired("activation_other")


def wrong(call: OpCall) -> Any:
    """Take ReLU for whatever it is."""
    return torch.relu(call.args[0]) if call.name in ("silu", "gelu") else UNTOUCHED


SIGNATURE = signature("activation_other", "activation", 7, detect, OpPlant(wrong))
