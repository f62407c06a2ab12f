"""A mask among the inputs is not applied to the keys: padding is attended to."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant, is_attention
from parity.diagnose.signature import repaired, signature

detect = repaired("mask_ignored")


def wrong(call: OpCall) -> Any:
    """Attend to everything."""
    masked = is_attention(call) and call.kwargs.get("attn_mask") is not None
    return call.run(attn_mask=None) if masked else UNTOUCHED


SIGNATURE = signature("mask_ignored", "attention", 7, detect, OpPlant(wrong))
