"""A change beside a layer's weight: its forward wrapped, as PEFT does, and unwrapped again.

Letters in shapes: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import torch
from torch import Tensor, nn

from parity.lora.adapter import LoraTarget
from parity.lora.dora import by_input, factors, with_magnitudes
from parity.lora.full import Place
from parity.lora.layers import added, added_in_full, along_outputs, kind_of, quantised

Add = Callable[[Tensor, Tensor], Tensor]
"""From input and output of a layer to its output with the change."""


def wrap(layer: nn.Module, target: LoraTarget) -> Callable[[], None]:
    """Wrap a layer's forward; return what undoes it."""
    wrapped = Wrapped(layer, target.A)
    kind, scaling = kind_of(layer), target.scaling
    assert kind is not None
    name_a, name_b = wrapped.hold("lora_A", target.A), wrapped.hold("lora_B", target.B)
    wrapped.add(lambda x, y: y + added(layer, kind, x, getattr(layer, name_a), getattr(layer, name_b)) * scaling)
    if target.magnitude is not None:
        factor = along_outputs(layer, kind, factors(target, weight_of(layer)).flatten())
        name = wrapped.hold("lora_magnitude", factor)
        inputs = by_input(target) and kind == "linear"  # of an embedding they are those of the width it gives
        wrapped.forward(lambda forward: with_magnitudes(layer, forward, name, inputs))
    if target.bias is not None:
        _bias(wrapped, layer, target.bias)
    return wrapped.undo


def wrap_in_full(place: Place) -> Callable[[], None]:
    """Wrap the forward of a layer whose weight or bias is changed in full; return what undoes it."""
    layer, kind, value = place.layer, place.kind, place.change.value
    assert kind is not None
    wrapped = Wrapped(layer, value)
    if place.attribute == "bias":
        _bias(wrapped, layer, value)
    else:
        name = wrapped.hold("lora_diff", value.flatten(1))
        wrapped.add(lambda x, y: y + added_in_full(layer, kind, x, getattr(layer, name)))
    return wrapped.undo


def _bias(wrapped: Wrapped, layer: nn.Module, value: Tensor) -> None:
    kind = kind_of(layer)
    assert kind is not None
    name = wrapped.hold("lora_bias", along_outputs(layer, kind, value.flatten()))
    wrapped.add(lambda x, y: y + getattr(layer, name))


def weight_of(layer: nn.Module) -> Tensor:
    """Return a layer's weight."""
    weight = layer.weight
    assert isinstance(weight, Tensor)
    return weight


class Wrapped:
    """A layer whose forward is wrapped, with the tensors that needs as non-persistent buffers.

    Args:
        layer: the layer.
        like: a tensor of the adapter, which says in which dtype a quantised layer computes.
    """

    def __init__(self, layer: nn.Module, like: Tensor) -> None:
        self.layer = layer
        self.dtype, self.device = _arithmetic(layer, like)
        self._own = layer.__dict__.get("forward")
        self._names: list[str] = []

    def hold(self, name: str, value: Tensor) -> str:
        """Keep a tensor in the layer; return the name it has there."""
        free = _free_name(self.layer, name)
        self._names.append(free)
        copied = value.detach().to(self.device, self.dtype, copy=True)
        self.layer.register_buffer(free, copied.contiguous(), persistent=False)
        return free

    def forward(self, wrap: Callable[[Callable[..., Any]], Callable[..., Any]]) -> None:
        """Wrap the forward as it is now."""
        self.layer.__dict__["forward"] = wrap(self.layer.forward)

    def add(self, add: Add) -> None:
        """Let the forward add something to its first result, in the result's dtype."""

        def adding(forward: Callable[..., Any]) -> Callable[..., Any]:
            def forward_with(*args: Any, **kwargs: Any) -> Any:
                x = args[0] if args else next(iter(kwargs.values()))
                result = forward(*args, **kwargs)
                y = result[0] if isinstance(result, tuple) else result
                y = add(x, y).to(y.dtype)
                return (y, *result[1:]) if isinstance(result, tuple) else y

            return forward_with

        self.forward(adding)

    def undo(self) -> None:
        """Put the forward back that was there, and forget the tensors."""
        self.layer.__dict__.pop("forward", None)
        if self._own is not None:
            self.layer.__dict__["forward"] = self._own
        for name in self._names:
            delattr(self.layer, name)


def _arithmetic(layer: nn.Module, like: Tensor) -> tuple[torch.dtype, torch.device]:
    """Return the dtype and device of what is added: the weight's, or on a quantised layer the adapter's own."""
    held: Sequence[Tensor] = [*layer.parameters(False), *layer.buffers(False), like]
    if not quantised(layer):
        return weight_of(layer).dtype, held[0].device
    low = like.dtype in (torch.bfloat16, torch.float16)
    return (like.dtype if low else torch.float32), held[0].device


def _free_name(layer: nn.Module, name: str) -> str:
    names = (f"{name}_{number}" if number else name for number in range(1000))
    return next(free for free in names if not hasattr(layer, free))
