"""One parameter is used for two: k goes through q's norm, and k's gain is read nowhere."""

from __future__ import annotations

from typing import Any

from torch import nn

from parity.diagnose.plants import ModulePlant, norms, pairs_alike
from parity.diagnose.signature import repaired, signature

detect = repaired("parameter_shared")


def choose(module: nn.Module) -> list[nn.Module]:
    """Choose the second of two norms of one width, and remember the first."""
    found = pairs_alike(norms(module))
    for one, other in found:
        other.__dict__["planted_for"] = one.forward
    return [other for _, other in found]


def wrong(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Run the first norm in the place of the second."""
    return module.__dict__["planted_for"](*args, **kwargs)


SIGNATURE = signature("parameter_shared", "norm", 7, detect, ModulePlant(choose, wrong))
