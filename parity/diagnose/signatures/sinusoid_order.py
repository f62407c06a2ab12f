"""The sines of a timestep embedding come before the cosines, or the other way round."""

from __future__ import annotations

from typing import Any

import torch

from parity.diagnose.plants import UNTOUCHED, OpCall, OpPlant, waves_of
from parity.diagnose.signature import Seen, Words, close, repaired, signature


def detect(seen: Seen) -> Words:
    """Find halves that are exchanged and whose squares add to one, or take the repair."""
    if seen.reference.shape[-1] % 2 == 0 and seen.reference.shape[-1]:
        first, second = seen.reference.chunk(2, -1)
        waves = close(first.square() + second.square(), torch.ones_like(first))
        if waves and seen.holds(torch.cat((second, first), -1)):
            return "sines and cosines are in the other order"
    return repaired("sinusoid_order")(seen)


def wrong(call: OpCall) -> Any:
    """Join sines and cosines the other way round."""
    waves, noted = waves_of(call)
    if noted is not None:
        return noted
    joined = call.name == "cat" and len(call.args[0]) == 2 and all(any(p is w for w in waves) for p in call.args[0])
    return call.run(list(call.args[0])[::-1], *call.args[1:]) if joined else UNTOUCHED


SIGNATURE = signature("sinusoid_order", "timestep", 2, detect, OpPlant(wrong))
