"""An activation more than the original has, before a last projection say."""

from __future__ import annotations

from typing import Any

import torch
from torch import nn

from parity.diagnose.plants import ModulePlant, linears
from parity.diagnose.signature import repaired, signature

detect = repaired("activation_extra")


def wrong(module: nn.Module, forward: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Take SiLU of what comes in."""
    return forward(torch.nn.functional.silu(x), *args, **kwargs)


def choose(module: nn.Module) -> list[nn.Module]:
    """Choose the first linear layer."""
    return [m for _, m in linears(module)][:1]


SIGNATURE = signature("activation_extra", "activation", 7, detect, ModulePlant(choose, wrong))
