"""The timestep is scaled: sigmas for steps of 0 to 1000, or a factor of the checkpoint that is left out."""

from __future__ import annotations

from typing import Any

from torch import Tensor, nn

from parity.diagnose.plants import UNTOUCHED, ModulePlant
from parity.diagnose.signature import Seen, Words, close, repaired, signature


def detect(seen: Seen) -> Words:
    """Find the factor of a value with one number for each sample or frame, or take the repair of one before a table."""
    r, n = seen.reference.flatten(), seen.native.flatten()
    alone = seen.reference.dim() == 1 and 0 < len(r) <= 4096 and bool(r.any())
    factor = float((n * r).sum() / r.square().sum()) if alone else 0.0
    if factor and factor != -1.0 and close(n, factor * r) and not close(n, r):
        return f"the timestep is {factor:.6g} times the reference's"
    return repaired("timestep_scale")(seen)


def wrong(module: nn.Module, forward: Any, *args: Any, **kwargs: Any) -> Any:
    """Embed a thousandth of the timestep: of the first argument with one number for each sample."""
    given = [*args, *kwargs.values()]
    place = next((n for n, value in enumerate(given) if isinstance(value, Tensor) and value.dim() == 1), None)
    if place is None:
        return UNTOUCHED
    given[place] = given[place] * 0.001
    return forward(*given[: len(args)], **dict(zip(kwargs, given[len(args) :], strict=True)))


SIGNATURE = signature("timestep_scale", "timestep", 0, detect, ModulePlant(lambda module: [module], wrong))
