"""Memory of dead shadows, and the ops that write their high values into it.

On a CPU fresh memory costs about as much as what is written to it: the kernel hands out every page on its first touch.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import torch
from torch import Tensor

_SPARE_FROM = 1 << 18
"""High values from which the memory of a dead shadow is kept for the next one."""
_SPARES, _OF_A_SIZE = 6, 2
"""How many pieces are kept, and how many of one size: a chain of ops needs two, what it reads and what it writes."""
_LEFT: list[Tensor] = []
"""The pieces of the last pass, for the next one."""

_aten = torch.ops.aten
_INTO: dict[Any, Callable[..., Tensor]] = {
    _aten.addmm.default: _aten.addmm.out,
    _aten.mm.default: _aten.mm.out,
    _aten.bmm.default: _aten.bmm.out,
    _aten.add.Tensor: _aten.add.out,
    _aten.sub.Tensor: _aten.sub.out,
    _aten.mul.Tensor: _aten.mul.out,
    _aten.div.Tensor: _aten.div.out,
    _aten.pow.Tensor_Scalar: _aten.pow.Tensor_Scalar_out,
    _aten.gelu.default: _aten.gelu.out,
    _aten.silu.default: _aten.silu.out,
    _aten.clone.default: lambda source, *, memory_format=None, out: out.copy_(source),
}
"""Ops with one output in its inputs' common dtype that can write into memory they are given, and how."""


class Spare:
    """Memory of dead shadows on a CPU, some pieces of it, while a pass runs; between passes it waits for the next."""

    def __init__(self) -> None:
        self._held: list[Tensor] = []
        self._open = False

    def __enter__(self) -> Spare:
        self._held, self._open = [*_LEFT], True
        _LEFT.clear()
        return self

    def __exit__(self, *exc: object) -> None:
        _LEFT[:] = self._held
        self._held, self._open = [], False

    def keep(self, flat: Tensor) -> None:
        """Keep memory [n] that a shadow has left, unless anyone else still sees it."""
        if not self._open or flat.numel() < _SPARE_FROM or flat.device.type != "cpu" or _seen_by(flat) != 1:
            return
        same = [held for held in self._held if held.numel() == flat.numel()]
        oldest = same[:1] if len(same) == _OF_A_SIZE else self._held[: max(0, len(self._held) + 1 - _SPARES)]
        self._held = [*(held for held in self._held if all(held is not gone for gone in oldest)), flat]

    def take(self, like: Tensor, dtype: torch.dtype) -> Tensor | None:
        """Return memory laid out as a tensor, for its high values; None where there is none of its size."""
        for i in range(len(self._held) - 1, -1, -1):  # the last one left is the likeliest to be in a cache
            if self._held[i].numel() == like.numel() and self._held[i].dtype == dtype:
                return self._held.pop(i).as_strided(like.shape, like.stride())
        return None


def writes_into(func: Any, low: Any) -> Callable[..., Tensor] | None:
    """Return what computes an op into given memory, None where it has no such form or the output has gaps."""
    into = _INTO.get(func)
    if into is None or not isinstance(low, Tensor) or low.numel() < _SPARE_FROM or low.is_complex():
        return None
    return into if low.numel() * low.element_size() == low.untyped_storage().nbytes() else None


def _seen_by(tensor: Tensor) -> int:
    """Count the tensors that share a tensor's memory, itself included."""
    storage = tensor.untyped_storage()
    return int(torch._C._storage_Use_Count(storage._cdata)) - 1  # one is `storage`
