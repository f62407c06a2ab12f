"""Two modules of one shape are used for each other, by the code or by the key map: w1 and w3, q and k."""

from __future__ import annotations

from typing import Any

from torch import nn

from parity.diagnose.plants import ModulePlant, linears, pairs_alike
from parity.diagnose.signature import repaired, signature

detect = repaired("modules_exchanged")


def choose(module: nn.Module) -> list[nn.Module]:
    """Choose the first two linear layers of one shape, and remember each other's forward."""
    found = pairs_alike([m for _, m in linears(module)])
    for one, other in found:
        one.__dict__["planted_for"], other.__dict__["planted_for"] = other.forward, one.forward
    return [m for pair in found for m in pair]


def wrong(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the other one."""
    return module.__dict__["planted_for"](*args, **kwargs)


SIGNATURE = signature("modules_exchanged", "weights", 7, detect, ModulePlant(choose, wrong))
