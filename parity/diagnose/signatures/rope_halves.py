"""A rotation pairs the channels of a head as halves for neighbours, or the other way round."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from parity.diagnose.plants import ModulePlant, norms, pairs_alike
from parity.diagnose.signature import repaired, signature

detect = repaired("rope_halves")


def choose(module: nn.Module) -> list[nn.Module]:
    """Choose the norms of q and k, behind which they are turned."""
    return [norm for pair in pairs_alike(norms(module)) for norm in pair]


def wrong(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Hand the channels on so that halves stand where neighbours should."""
    out = forward(*args, **kwargs)
    order = torch.arange(out.shape[-1], device=out.device).unflatten(0, (2, -1)).T.flatten()
    return out.index_select(-1, order)


SIGNATURE = signature("rope_halves", "rope", 7, detect, ModulePlant(choose, wrong))
