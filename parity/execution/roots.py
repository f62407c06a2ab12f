"""Roots: the tensors of a model whose values are given, and constants whose exact values are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.shadow import Shadow
from parity.execution.storage import BITS, real_dtype

_EXACT_ABOVE = 1 << 22
"""Elements above which a tensor made while building is a weight, not a table: taken as exact, not shadowed."""


def tensors_in(value: Any, depth: int = 3) -> Iterator[Tensor]:
    """Walk tuples, lists, mappings and plain objects' attributes for tensors."""
    if isinstance(value, Tensor):
        yield value
    elif depth and isinstance(value, Mapping):
        for v in value.values():
            yield from tensors_in(v, depth - 1)
    elif depth and isinstance(value, (tuple, list, set, frozenset)):
        for v in value:
            yield from tensors_in(v, depth - 1)


def constants_of(model: nn.Module) -> Iterator[Tensor]:
    """Walk a model's tensors that are no parameters: buffers, and attributes such as RoPE tables and their caches."""
    for module in model.modules():
        yield from (b for b in module.buffers(recurse=False) if b is not None)
        for name, value in vars(module).items():
            if name not in ("_parameters", "_buffers", "_modules") and not name.endswith("_hooks"):
                yield from (t for t in tensors_in(value) if not isinstance(t, nn.Parameter))


def roots_of(model: nn.Module, inputs: Any = None) -> list[Tensor]:
    """List the declared roots: parameters, buffers, tensor attributes and inputs."""
    return [*model.parameters(), *constants_of(model), *tensors_in(inputs)]


def build_with_constants(build: Callable[[], nn.Module]) -> tuple[nn.Module, list[tuple[Tensor, Tensor]]]:
    """Build a model under a shadow, so that tables made in `__init__` keep their exact values.

    Returns:
        The model, and its constants with their exact values.
    """
    shadow = Shadow(exact_above=_EXACT_ABOVE)
    with shadow:
        model = build()
    return model, exact_constants(model, shadow)


def exact_constants(model: nn.Module, shadow: Shadow) -> list[tuple[Tensor, Tensor]]:
    """Pair the model's constants with their exact values, where a shadow pass saw them made."""
    found = []
    with torch.no_grad():
        for constant in constants_of(model):
            if constant.is_floating_point() or constant.is_complex():
                high = shadow.history(constant)
                if high is not None and is_rounded_from(constant, high):
                    found.append((constant, high))
    return found


def is_rounded_from(low: Tensor, high: Tensor) -> bool:
    """Say whether low values are within a few roundings of the high ones: not written by anyone since.

    A table is a few ops long: its own rounding error is some units in the last place of its largest intermediate
    values (the angle of a RoPE table reaches thousands), so the margin is wide; a later write is wider still.
    """
    if high.isnan().any():
        return False
    unit = 2.0 ** -BITS[real_dtype(low.dtype)]
    scale = max(1.0, float(high.abs().max())) if high.numel() else 1.0
    return bool(((low.to(high.dtype) - high).abs() <= 4096 * unit * scale).all())
