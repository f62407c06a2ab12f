"""The scores are scaled by another number than one over the root of the head size."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant, is_attention
from parity.diagnose.signature import repaired, signature

detect = repaired("softmax_scale")


def wrong(call: OpCall) -> Any:
    """Scale as for heads of four times the size."""
    if not is_attention(call):
        return UNTOUCHED
    scale = call.kwargs.get("scale") or call.args[0].shape[-1] ** -0.5
    return call.run(scale=0.5 * scale)


SIGNATURE = signature("softmax_scale", "attention", 7, detect, OpPlant(wrong))
