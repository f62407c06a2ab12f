"""Attention is causal where the original's is full, or the other way round."""

from __future__ import annotations

from typing import Any

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant, is_attention
from parity.diagnose.signature import repaired, signature

detect = repaired("causality")


def wrong(call: OpCall) -> Any:
    """Attend to earlier keys only."""
    if not is_attention(call) or call.kwargs.get("attn_mask") is not None:
        return UNTOUCHED
    return call.with_argument(4 if call.name.endswith("for_cpu") else 5, True)


SIGNATURE = signature("causality", "attention", 7, detect, OpPlant(wrong))
