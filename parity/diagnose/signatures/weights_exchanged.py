"""A weight holds the values of another one: q and k exchanged by a converter, a norm of the wrong name."""

from __future__ import annotations

from torch import nn

from parity.diagnose.plants import WeightPlant, linears, pairs_alike
from parity.diagnose.signature import Seen, Words, signature


def detect(seen: Seen) -> Words:
    """Take the weights whose values are another's, bit for bit."""
    return next((f"{w.name} holds what should be {w.holds}" for w in seen.found.weights if w.holds), None)


def edit(module: nn.Module) -> int:
    """Exchange the first two linear layers of one shape."""
    found = pairs_alike([m for _, m in linears(module)])
    for one, other in found:
        kept = {k: v.clone() for k, v in one.state_dict().items()}
        one.load_state_dict(other.state_dict())
        other.load_state_dict(kept)
    return len(found)


SIGNATURE = signature("weights_exchanged", "weights", -9, detect, WeightPlant(edit))
