"""Lattice twins: the reference's own roundings repeated on a randomly scaled grid.

Where the low op rounds z to RN(z), a twin rounds it to RN(c z) / c with one random c in (1, 2). Same precision,
decorrelated roundings, no rebuilt torch and no second kernel: a null distribution for any model.
"""

from __future__ import annotations

from typing import Any

import torch
from torch import Tensor

from parity.execution.rules import Rule
from parity.execution.shadow import Shadow
from parity.execution.storage import bits, is_float


def round_to(values: Tensor, significand: int) -> Tensor:
    """Round float64 values to `significand` bits, to nearest, by Veltkamp's splitting (three operations).

    >>> round_to(torch.tensor([1.0 + 2**-9, 3.14159], dtype=torch.float64), 8).tolist()
    [1.0, 3.140625]
    """
    scaled = values * float(2 ** (53 - significand) + 1)
    return torch.where(values.isfinite(), scaled - (scaled - values), values)


class LatticeTwin(Shadow):
    """A shadow pass whose high side rounds wherever the low side does, on a grid scaled by `scale`.

    Args:
        scale: c in (1, 2).
        others: as for `Shadow`.
    """

    def __init__(self, scale: float, **others: Any) -> None:
        super().__init__(**others)
        self.scale = scale

    def _rounded(self, high: Tensor, significand: int) -> Tensor:
        if significand >= 53:
            return high
        if high.is_complex():
            return torch.view_as_complex(self._rounded(torch.view_as_real(high.resolve_conj()), significand))
        factor = float(2 ** (53 - significand) + 1)
        grid = high * self.scale
        inner = grid * factor
        out = inner.sub_(inner - grid).div_(self.scale)
        return torch.where(high.isfinite(), out, high)

    def _bind(self, rule: Rule, low: Tensor, high: Tensor) -> None:
        super()._bind(rule, low, high if rule.moves else self._rounded(high, bits(low.dtype)))

    def _written(self, rule: Rule, view: Tensor, low: Tensor, args: Any) -> None:
        source = args[1] if rule.short == "copy_" else None
        narrowed = isinstance(source, Tensor) and is_float(source) and bits(source.dtype) > bits(low.dtype)
        if narrowed or not rule.moves:
            view.copy_(self._rounded(view, bits(low.dtype)))

    def _cast(self, source: Tensor, out: Tensor) -> None:
        if not is_float(source) or bits(out.dtype) >= bits(source.dtype):
            super()._cast(source, out)
        else:
            self.table.adopt(out, self._rounded(self._high(source), bits(out.dtype)))
