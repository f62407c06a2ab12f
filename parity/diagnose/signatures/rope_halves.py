"""A rotation pairs the channels of a head as halves for neighbours, or the other way round."""

from __future__ import annotations

from typing import Any

from torch import nn

from parity.diagnose.plants import ModulePlant, norms, pairs_alike
from parity.diagnose.signature import repaired, signature

detect = repaired("rope_halves")


def choose(module: nn.Module) -> list[nn.Module]:
    """Choose the norms of q and k, behind which they are turned."""
    return [norm for pair in pairs_alike(norms(module)) for norm in pair]


def wrong(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Hand the channels on as another pairing wants them."""
    return forward(*args, **kwargs).unflatten(-1, (-1, 2)).transpose(-2, -1).flatten(-2)


SIGNATURE = signature("rope_halves", "rope", 7, detect, ModulePlant(choose, wrong))
