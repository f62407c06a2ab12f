"""Roots: the tensors of a model whose values are given, and constants whose exact values are known."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import Any

import torch
from torch import Tensor, nn

from parity.execution.shadow import Shadow
from parity.execution.storage import BITS, Entry, ShadowTable, real_dtype

EXACT_ABOVE = 1 << 22
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


def build_remembering(build: Callable[[], nn.Module]) -> tuple[nn.Module, ShadowTable]:
    """Build a model under a shadow, so that tables made in `__init__` keep their exact values.

    Returns:
        The model, and the shadows of what is still alive, its parameters excepted.
    """
    shadow = Shadow(exact_above=EXACT_ABOVE)
    with shadow:
        model = build()
    pruned(shadow.table, model)
    return model, shadow.table


def pruned(table: ShadowTable, model: nn.Module) -> None:
    """Forget the shadows of parameters, and of tables that someone has written since."""
    for parameter in model.parameters():
        table.entries.pop(parameter.untyped_storage()._cdata, None)
    with torch.no_grad():
        for constant in constants_of(model):
            if constant.is_floating_point() or constant.is_complex():
                entry = table.find(constant)
                if entry is not None and not _is_as_remembered(constant, entry, table):
                    del table.entries[constant.untyped_storage()._cdata]


def _is_as_remembered(constant: Tensor, entry: Entry, table: ShadowTable) -> bool:
    """Say whether a table still has the very values it had when it was first looked at."""
    if entry.low is None or entry.low.shape != constant.shape:
        entry.low = constant.detach().clone()
        return is_rounded_from(constant, table.read(constant, entry))
    return bool(torch.equal(entry.low, constant))


def is_rounded_from(low: Tensor, high: Tensor) -> bool:
    """Say whether low values are what a few roundings make of the high ones: not written by anyone since.

    A table is a few float32 ops long, and the angle of a RoPE table reaches thousands: the margin is one rounding to
    the stored dtype and some thousand float32 units of the largest value. A later write is farther off.
    """
    if not high.numel():
        return True
    if high.isnan().any():
        return False
    stored = 2.0 ** -(BITS[real_dtype(low.dtype)] - 1)
    slack = 4096 * 2.0**-24 * max(1.0, float(high.abs().max()))
    return bool(((low.to(high.dtype) - high).abs() <= stored * high.abs() + slack).all())
