"""Weight-decomposed LoRA (DoRA): the changed weight keeps its direction and takes its length from trained magnitudes.

W' = m * (W + s B A) / |W + s B A|, with one length for each output (PEFT's, [O] or [O, 1]) or each input ([1, I]).
Letters in shapes: R rank, I inputs and O outputs of the layer.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor, nn

from parity.errors import LoraError
from parity.lora.adapter import LoraTarget


def by_input(target: LoraTarget) -> bool:
    """Whether the magnitudes are one for each input: by shape, and of an embedding always (PEFT's, of its width).

    Raises:
        LoraError: there are as many of them as neither outputs nor inputs.
    """
    m, shape = target.magnitude, (target.B.shape[0], target.A.shape[1])
    assert m is not None
    if target.embedding and m.numel() == shape[1]:
        return True
    if m.ndim == 2 and m.shape[0] == 1 != shape[0] and m.shape[1] == shape[1]:
        return True
    if m.numel() != shape[0]:
        raise LoraError(f"magnitudes {tuple(m.shape)} are for neither of {shape[0]} outputs and {shape[1]} inputs")
    return False


def factors(target: LoraTarget, weight: Tensor) -> Tensor:
    """Return m / |W + s B A|, in float32.

    Shapes: weight [O, I] to [O, 1], or to [1, I] where magnitudes are by input; a kernel is counted to I.
    """
    assert target.magnitude is not None
    dim = 0 if by_input(target) else 1
    delta = (target.B.float() @ target.A.float()).to(weight.device) * target.scaling
    changed = weight.detach().float().flatten(1) + delta
    length: Tensor = torch.linalg.vector_norm(changed, dim=dim, keepdim=True)
    return target.magnitude.to(length).reshape(length.shape) / length


def change_of(target: LoraTarget, weight: Tensor) -> Tensor:
    """Return what a target adds to a weight, magnitudes counted, in float64.

    Shapes: weight, result [O, I], or with a kernel [O, C, ...].
    """
    delta = target.delta().to(weight.device)
    if target.magnitude is not None:
        old = weight.detach().double().flatten(1)
        delta = (old + delta) * factors(target, weight).double() - old
    return delta.reshape(weight.shape)


def with_magnitudes(layer: nn.Module, forward: Callable[..., Any], name: str, inputs: bool) -> Callable[..., Any]:
    """Multiply the inputs, or the outputs but for the bias that is in them, by m / |W + s B A|.

    The factor is held by the layer in the shape in which it is multiplied.
    """

    def forward_with(*args: Any, **kwargs: Any) -> Any:
        factor = getattr(layer, name)
        if inputs:
            scaled = [value * factor.to(value.dtype) for value in (*args[:1], *([] if args else kwargs.values()))]
            return forward(*scaled, *args[1:])
        result = forward(*args, **kwargs)
        whole = isinstance(result, tuple)
        y = result[0] if whole else result
        bias = getattr(layer, "bias", None) if not whole else None
        bias = bias if bias is None else bias.reshape(factor.shape)
        y = y * factor if bias is None else (y - bias) * factor + bias
        return (y, *result[1:]) if whole else y

    return forward_with
