"""Merge a change into a layer, say how much of it the weight's dtype keeps, and put the layer back.

Letters in shapes: I inputs and O outputs of the layer.
"""

from __future__ import annotations

import warnings
from collections.abc import Callable, Mapping

import torch
from torch import Tensor, nn

from parity.errors import LoraError
from parity.lora.adapter import LoraTarget
from parity.lora.dora import change_of
from parity.numerics.chunks import norm

KEPT_LIMIT = 0.9
"""Below this share of the change a merge is warned of."""


@torch.no_grad()
def merge_into(layer: nn.Module, target: LoraTarget) -> tuple[float, Callable[[], None]]:
    """Merge into a layer; return the share of the weight's change that is in it now, and what puts the copies back."""
    weight = _held(layer, "weight")
    data, old = weight.detach(), weight.detach().clone()
    delta = (change_of(target, weight) if target.magnitude is not None else target.delta(torch.float32)).float()
    delta = delta.to(weight.device).reshape(weight.shape)
    put_back = [(data, old)]
    if target.bias is not None:
        bias = _held(layer, "bias").detach()
        put_back.append((bias, bias.clone()))
        bias.copy_((bias.float() + target.bias.to(bias.device).float()).to(bias.dtype))
    data.copy_((data.float() + delta).to(data.dtype))
    kept = kept_share(data, old, delta)

    def undo() -> None:
        for value, before in put_back:
            value.copy_(before)

    return kept, undo


def _held(layer: nn.Module, name: str) -> Tensor:
    value = getattr(layer, name)
    assert isinstance(value, Tensor)
    return value


def check_bias(path: str, layer: nn.Module, target: LoraTarget) -> None:
    """Refuse to merge a bias into a layer that has none.

    Raises:
        LoraError: it has none.
    """
    if target.bias is not None and not isinstance(getattr(layer, "bias", None), Tensor):
        raise LoraError(f"{path!r} has no bias to merge the adapter's bias into\napply the adapter unmerged")


def kept_share(new: Tensor, old: Tensor, delta: Tensor) -> float:
    """Return how much of a change is in a weight once it is merged: the projection of what changed on it.

    Shapes: all [O, I].
    """
    size = norm(delta) ** 2
    moved = new.detach().float() - old.float()
    return float((moved * delta).sum(dtype=torch.float64)) / size if size else 1.0


def warn_of_swallowed(name: str, kept: Mapping[str, float]) -> None:
    """Warn where the dtype of the weights swallows a tenth of the change or more."""
    low = {path: share for path, share in kept.items() if share < KEPT_LIMIT}
    if low:
        path, worst = min(low.items(), key=lambda item: item[1])
        text = f"stored-weight rounding: merging {name!r} keeps less than {KEPT_LIMIT:.0%} of the change in"
        where = f"{text} {len(low)} of {len(kept)} modules, {worst:.0%} in {path!r}"
        warnings.warn(f"{where}; apply it unmerged", UserWarning, stacklevel=4)
