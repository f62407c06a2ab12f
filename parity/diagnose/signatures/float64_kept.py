"""A table is made in float64 where the original makes it in float32."""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity.diagnose.nearest import Nearest
from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant
from parity.diagnose.signature import rounded, signature

_MAKES_ANGLES = ("exp", "pow", "mul", "div", "reciprocal", "cos", "sin")


def _about(nearest: Nearest) -> bool:
    """Say whether what is skipped is a rounding to float32."""
    return nearest.to_single


detect = rounded("keep", _about)


def wrong(call: OpCall) -> Any:
    """Carry float64 beside what makes angles, and take sines and cosines of it."""
    wide: list[tuple[Tensor, Tensor]] = call.kept.setdefault("wide", [])

    def carried(held: Any) -> Any:
        known = [w for t, w in wide if t is held]
        return known[0] if known else held.double() if isinstance(held, Tensor) and held.is_floating_point() else held

    if call.name not in _MAKES_ANGLES or not any(isinstance(a, Tensor) and a.dtype == torch.float32 for a in call.args):
        return UNTOUCHED
    exact = call.func(*(carried(a) for a in call.args), **call.kwargs)
    out = exact.float()
    wide.append((out, exact))
    return out


SIGNATURE = signature("float64_kept", "precision", 18, detect, OpPlant(wrong), on="rounding")
