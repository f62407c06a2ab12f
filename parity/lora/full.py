"""Changes in full: added to a tensor of the model, or put in its place, and taken back bit for bit.

`.diff` is for the weight, `.diff_b` for the bias, `.diff_m` for a parameter that stands alone; `.set_weight` replaces.
The strength of an adapter multiplies what is added, not what replaces.
"""

from __future__ import annotations

import difflib
from collections.abc import Callable, Iterable, Iterator, Mapping
from dataclasses import dataclass

import torch
from torch import Tensor, nn

from parity.errors import LoraError
from parity.lora.adapter import FullChange, LoraAdapter
from parity.lora.layers import Kind, kind_of, quantised, shape_of


@dataclass(frozen=True)
class Place:
    """Where a change in full goes.

    Args:
        name: as the adapter has it.
        path: of the module.
        layer: the module.
        attribute: of the tensor in it.
        tensor: None where the module has none there.
        kind: of the layer, where a change can stand beside its weight.
        change: what goes there.
    """

    name: str
    path: str
    layer: nn.Module
    attribute: str
    tensor: Tensor | None
    kind: Kind | None
    change: FullChange

    @property
    def beside(self) -> bool:
        """Whether the change can stand beside the weight, which then stays as it is."""
        if self.change.replaces or self.kind is None:
            return False
        return self.attribute == "weight" or (self.attribute == "bias" and self.kind != "embedding")


def places(model: nn.Module, adapter: LoraAdapter) -> dict[str, Place]:
    """Find where each change in full goes.

    Raises:
        LoraError: there is no tensor of that name, or it has another shape.
    """
    modules = dict(model.named_modules(remove_duplicate=False))
    found = {name: _place(name, change, modules) for name, change in adapter.changes.items()}
    if missing := [name for name, place in found.items() if place is None]:
        names = [*(name for name, _ in model.named_parameters()), *(name for name, _ in model.named_buffers())]
        near = difflib.get_close_matches(missing[0], names, n=1, cutoff=0.4)
        hint = f"\nnearest: {near[0]!r}" if near else ""
        text = f"{len(missing)} of {len(found)} tensors adapter {adapter.name!r} changes in full are not in the model"
        raise LoraError(f"{text}\nfirst: {missing[0]!r}{hint}")
    held = {name: place for name, place in found.items() if place is not None}
    for place in held.values():
        _check_shape(place)
    return held


def _place(name: str, change: FullChange, modules: Mapping[str, nn.Module]) -> Place | None:
    for whole in (name, name.removesuffix(".weight")):  # the second: a parameter that stands alone
        path, _, attribute = whole.rpartition(".")
        layer = modules.get(path)
        value = getattr(layer, attribute, None)
        if layer is not None and isinstance(value, Tensor):
            kind = kind_of(layer) if attribute in ("weight", "bias") else None
            return Place(name, path, layer, attribute, value, kind, change)
    path, _, attribute = name.rpartition(".")
    layer = modules.get(path)
    if layer is not None and attribute in ("weight", "bias") and kind_of(layer) is not None:
        return Place(name, path, layer, attribute, None, kind_of(layer), change)
    return None


def tensors_of(model: nn.Module, names: Iterable[str]) -> dict[str, Tensor]:
    """Return the tensors that changes in full of these names go to, without those the model lacks."""
    modules, nothing = dict(model.named_modules(remove_duplicate=False)), FullChange(torch.zeros(1))
    found = {name: _place(name, nothing, modules) for name in names}
    return {name: place.tensor for name, place in found.items() if place is not None and place.tensor is not None}


def _check_shape(place: Place) -> None:
    given, shape = place.change.value.shape, shape_of(place.layer)
    if place.attribute == "weight" and place.kind is not None and (place.tensor is None or quantised(place.layer)):
        wanted = torch.Size(shape or ())
    elif place.tensor is None:
        wanted = torch.Size((shape or (0,))[:1])
    else:
        wanted = place.tensor.shape
    if given != wanted:
        raise LoraError(f"{place.name!r}: the change in full is {list(given)}, the tensor {list(wanted)}")
    if place.tensor is not None and not place.beside and not is_plain(place.tensor):
        text = f"{place.name!r} is quantised: a change in full cannot be written into it"
        raise LoraError(f"{text}\napply the adapter before the model is quantised")


def is_plain(value: Tensor) -> bool:
    """Whether a tensor holds floats that can be added to."""
    return value.is_floating_point() and value.element_size() > 1


def without_bias(found: Mapping[str, Place]) -> Iterator[str]:
    """Yield the layers whose bias is changed and that have none."""
    yield from (place.path for place in found.values() if place.attribute == "bias" and place.tensor is None)


@torch.no_grad()
def write(place: Place) -> Callable[[], None]:
    """Write a change into its tensor; return what puts the copy back.

    Raises:
        LoraError: the layer has no such tensor.
    """
    if place.tensor is None:
        text = f"{place.path!r} has no {place.attribute} for what adapter's {place.name!r} adds"
        raise LoraError(f"{text}\napply the adapter unmerged")
    data = place.tensor.detach()
    old = data.clone()
    value = place.change.value.to(data.device)
    data.copy_(value if place.change.replaces else (_wide(data) + _wide(value)).to(data.dtype))

    def undo() -> None:
        data.copy_(old)

    return undo


def _wide(value: Tensor) -> Tensor:
    return value if value.dtype == torch.float64 else value.float()
