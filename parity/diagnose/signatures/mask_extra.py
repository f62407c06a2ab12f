"""Keys are masked that the original attends to: attention without the mask is the original's."""

from __future__ import annotations

import math
from typing import Any

import torch

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant, is_attention
from parity.diagnose.signature import repaired, signature

detect = repaired("mask_extra")


def wrong(call: OpCall) -> Any:
    """Leave out the last key."""
    if not is_attention(call) or call.kwargs.get("attn_mask") is not None or call.args[1].shape[-2] < 2:
        return UNTOUCHED
    q, k = call.args[:2]
    bias = torch.zeros(*q.shape[:-1], k.shape[-2], dtype=q.dtype, device=q.device)
    bias.select(-1, -1).fill_(-math.inf)
    return call.run(attn_mask=bias)


SIGNATURE = signature("mask_extra", "attention", 7, detect, OpPlant(wrong))
