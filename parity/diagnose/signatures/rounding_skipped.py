"""A rounding of the original is not made: two ops are one, or a gain is applied before the cast."""

from __future__ import annotations

from typing import Any

import torch

from parity.diagnose.nearest import Nearest
from parity.diagnose.plants import UNTOUCHED, AsIs, OpCall, OpPlant
from parity.diagnose.signature import rounded, signature


def _about(nearest: Nearest) -> bool:
    """Say whether what is skipped is a rounding to 16 bits."""
    return not nearest.to_single and not nearest.kernel


detect = rounded("keep", _about)


def wrong(call: OpCall) -> Any:
    """Keep an activation wide until it is multiplied, as a fused kernel does."""
    if call.name in ("silu", "gelu") and call.args[0].dtype != torch.float32:
        out = call.run()
        call.kept["out"], call.kept["wide"] = out, call.run(call.args[0].float())
        return AsIs(out)
    first = call.kept.get("out")
    if call.name == "mul" and first is not None and any(a is first for a in call.args):
        wide = [call.kept["wide"] if a is first else a.float() for a in call.args[:2]]
        return torch.mul(*wide).to(first.dtype)
    return UNTOUCHED


SIGNATURE = signature("rounding_skipped", "precision", 20, detect, OpPlant(wrong), on="rounding")
