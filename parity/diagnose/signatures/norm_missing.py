"""A norm is not applied, of q or k say: running the one the native has, or a plain one, restores the function."""

from __future__ import annotations

from typing import Any

from torch import nn

from parity.diagnose.plants import ModulePlant, norms
from parity.diagnose.signature import repaired, signature

detect = repaired("norm_missing")


def wrong(module: nn.Module, forward: Any, x: Any, *args: Any, **kwargs: Any) -> Any:
    """Hand on what came in."""
    return x


SIGNATURE = signature("norm_missing", "norm", 7, detect, ModulePlant(lambda module: norms(module)[:1], wrong))
